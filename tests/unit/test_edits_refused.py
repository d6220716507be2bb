"""What is refused where images start from pictures, over HTTP but without Ray."""

import gc
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.job_stores import in_loop
from tests.picture_files import animated, data_url, file_of, picture, png_of_header, right_half
from tests.unit.test_authentication import JOBS, serving
from tests.unit.test_edits_route import (
    EDITS,
    MASK,
    PNG,
    URL,
    VARIATIONS,
    check_nothing_is_left,
    edit,
    file,
    form,
    part,
    prediction,
)

MAX_GROWTH_BYTES = 100 * 10**6
Parts = Sequence[tuple[str, tuple[str | None, bytes | str] | tuple[str | None, bytes | str, str]]]


@dataclass(frozen=True)
class Bad:
    """A request that is refused. param: the field that the error names; status: if it is no matter of form

    body: the arguments of httpx' `post`
    """

    name: str
    path: str
    param: str | None
    status: int = 400
    body: dict[str, Any] = field(default_factory=dict)


def compressed_text() -> bytes:
    """A PNG with a text that is far larger than it looks."""
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * (80 * 2**20), zip=True)
    return file_of(picture(), pnginfo=text)


def damaged(data: bytes) -> bytes:
    """The file with other bytes in its middle."""
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 20]) + data[middle + 20 :]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
# What is no picture, or is a picture that is not taken: each with its status.
FILES_REFUSED: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 415),
    "one byte": (b"\x89", 415),
    "PNG cut in the middle": (file_of(NOISE)[: len(file_of(NOISE)) // 2], 415),
    "PNG cut after its header": (PNG[:33], 415),
    "PNG with other bytes in its middle": (damaged(file_of(NOISE)), 415),
    "PNG with a wrong sum": (PNG[:29] + b"\0\0\0\0" + PNG[33:], 415),
    "PNG of 100000x100000": (png_of_header(100_000, 100_000), 413),
    "PNG of 8000x8000": (png_of_header(8000, 8000), 413),
    "PNG of 0x0": (png_of_header(0, 0), 415),
    "PNG without its pixels": (png_of_header(96, 64), 415),
    "PNG with a text that is larger than it looks": (compressed_text(), 415),
    "PNG with a chunk that says it is huge": (PNG[:33] + b"\xff\xff\xff\xffIDAT", 415),
    "JPEG cut in the middle": (file_of(NOISE, "JPEG")[:1000], 415),
    "JPEG of 65500x65500": (file_of(NOISE, "JPEG").replace(b"\x00\x40\x00\x60", b"\xff\xdc\xff\xdc"), 413),
    "WebP cut in the middle": (file_of(NOISE, "WEBP")[:1000], 415),
    "GIF": (file_of(picture(), "GIF"), 415),
    "GIF that moves": (animated("GIF"), 415),
    "WebP that moves": (animated("WEBP"), 415),
    "PNG that moves": (animated("PNG"), 415),
    "BMP": (file_of(picture(), "BMP"), 415),
    "TIFF": (file_of(picture(), "TIFF"), 415),
    "PDF": (file_of(picture(), "PDF"), 415),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 64\n", 415),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="96" height="64"/>', 415),
    "HTML": (b"<!doctype html><title>Not found</title>", 415),
    "text": ("kein Bild".encode("utf-16"), 415),
    "zip": (b"PK\x03\x04" + bytes(100), 415),
    "21 MiB": (PNG + bytes(21 * 2**20), 413),
}
MASKS_REFUSED: dict[str, tuple[bytes, int]] = {
    "mask of another size": (file_of(right_half((64, 96))), 400),
    "mask that repaints nothing": (file_of(Image.new("L", (96, 64))), 400),
    "mask cut in the middle": (file_of(NOISE)[: len(file_of(NOISE)) // 2], 415),
    "mask that is no picture": (b"<svg/>", 415),
    "empty mask": (b"", 415),
}


def of_files() -> list[Bad]:
    bad = []
    for name, (data, status) in FILES_REFUSED.items():
        url = data_url(data)
        bad += [
            Bad(f"form: {name}", EDITS, "image", status, form(EDITS, file("image", data))),
            Bad(f"variation: {name}", VARIATIONS, "image", status, form(VARIATIONS, file("image", data))),
            Bad(f"JSON: {name}", EDITS, "images", status, edit(images=[{"image_url": url}])),
            Bad(f"prediction: {name}", JOBS, "input.image", 422, prediction(image=url)),
        ]
    return bad


def of_masks() -> list[Bad]:
    bad = []
    for name, (data, status) in MASKS_REFUSED.items():
        url = data_url(data)
        parts = file("image"), file("mask", data)
        bad += [
            Bad(f"form: {name}", EDITS, "mask", status, form(EDITS, *parts)),
            Bad(f"JSON: {name}", EDITS, "mask", status, edit(image=URL, mask={"image_url": url})),
            Bad(f"prediction: {name}", JOBS, "input.mask", 422, prediction(image=URL, mask=url)),
        ]
    return bad


# None of them can be fetched; the last ones need more than a look at the URL.
URLS_REFUSED = [
    "",
    "picture.png",
    "/v1/files/images/a/0-aaaaaaaaaaaaaaaaaaaaaa.png",
    "data:",
    "data:,",
    "data:image/png,abc",
    "data:image/png;base64",
    "data:image/png;base64,",
    "data:image/png;base64,%%%",
    "data:image/png;base64,a",
    "data:image/png;base64,äöü",
    "data:image/png;base64," + URL,
    "data:text/html;base64,PGI+",
    "DATA:image/png;base64,",
    "file:///etc/passwd",
    "ftp://example.com/picture.png",
    "gopher://example.com/",
    "s3://bucket/picture.png",
    "javascript:alert(1)",
    "HTTPS//example.com",
    "http://",
    "http:///picture.png",
    "http://[",
    "http://[::1",
    "http://a]b/",
    "http://a℀b/",
    "http://user:secret@example.com/",
    "http://example.com/a b",
    "http://example.com/\n",
    "http://example.com:99999/",
    "http://example.com/" + "a" * 2100,
    "http://localhost/",
    "http://localhost:8265/api/jobs/",
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://0.0.0.0/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://10.0.0.1/",
    "http://192.168.0.1/",
    "http://172.16.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/",
    "http://metadata.google.internal./computeMetadata/v1/",
    "http://nobody.invalid/picture.png",
    "http://midstep/v1/files/00000000000000000000000000/download?signature=a",
    "http://midstep/v1/files/answers/aaaaaaaaaaaaaaaaaaaaaa.png",
    "http://midstep/v1/files/../../jobs.sqlite",
    "http://midstep/v1/files/checkpoints/job/0",
]


def of_urls() -> list[Bad]:
    bad = []
    for url in URLS_REFUSED:
        shown = url if len(url) < 60 else url[:60] + "..."
        status = 415 if url in ("data:image/png;base64,", "data:text/html;base64,PGI+") else 400
        bad += [
            Bad(f"JSON: {shown!r}", EDITS, "image_url", status, edit(image_url=url)),
            # An empty field of a form counts as absent.
            *(
                [
                    Bad(
                        f"form: {shown!r}",
                        EDITS,
                        "mask",
                        status,
                        form(EDITS, file("image"), part("mask", url)),
                    )
                ]
                if url
                else []
            ),
            Bad(f"prediction: {shown!r}", JOBS, "input.init_image", 422, prediction(init_image=url)),
        ]
    return bad


def of_forms() -> list[Bad]:
    forms: list[tuple[str, str | None, Parts]] = [
        ("no picture", "image", []),
        ("a mask alone", "image", [file("mask")]),
        ("two pictures", "image", [file("image"), file("image")]),
        ("pictures of two names", "image", [file("image"), file("image[]")]),
        ("a picture as text and as a file", "image", [file("image"), part("image", URL)]),
        ("a picture as text twice", "image", [part("image", URL), part("image", URL)]),
        ("two masks", "mask", [file("image"), file("mask", MASK), file("mask", MASK)]),
        ("a field as a file", "n", [file("image"), ("n", ("n.txt", b"2"))]),
        ("an unknown field", "imagination", [file("image"), part("imagination", "x")]),
        ("an unknown file", "picture", [file("image"), file("picture")]),
        ("a nested field", "hires[scale]", [file("image"), part("hires[scale]", "2")]),
        ("an object in a field", "hires", [file("image"), part("hires", '{"scale": 2}')]),
        ("the same field twice", "n", [file("image"), part("n", "1"), part("n", "1")]),
        ("two names of a field", "cfg", [file("image"), part("guidance_scale", "1"), part("cfg", "2")]),
        ("no number", "n", [file("image"), part("n", "x")]),
        ("part of a number", "n", [file("image"), part("n", "1.5")]),
        ("no image", "n", [file("image"), part("n", "0")]),
        ("too many images", "n", [file("image"), part("n", "11")]),
        ("too long a number", "seed", [file("image"), part("seed", "9" * 5000)]),
        ("no finite number", "strength", [file("image"), part("strength", "nan")]),
        ("no strength", "strength", [file("image"), part("strength", "0")]),
        ("too much strength", "strength", [file("image"), part("strength", "1.01")]),
        ("too little strength", "prompt_strength", [file("image"), part("prompt_strength", "0.01")]),
        ("neither true nor false", "stream", [file("image"), part("stream", "maybe")]),
        ("a size that is none", "size", [file("image"), part("size", "large")]),
        ("a size that is too large", "size", [file("image"), part("size", "4096x4096")]),
        ("a width that is too large", "width", [file("image"), part("width", "4096")]),
        ("a crop without a mask", "padding_mask_crop", [file("image"), part("padding_mask_crop", "8")]),
        (
            "a padding that is too large",
            "padding_mask_crop",
            [file("image"), part("padding_mask_crop", "1e9")],
        ),
        (
            "a mask's field without one",
            "preserve_unmasked",
            [file("image"), part("preserve_unmasked", "true")],
        ),
        ("another format", "output_format", [file("image"), part("output_format", "gif")]),
        ("a zero byte", "negative_prompt", [file("image"), part("negative_prompt", "\0")]),
        ("a sampler that is none", "sampler", [file("image"), part("sampler", "magic")]),
        ("a field that is too long", "prompt", [file("image"), part("prompt", "x" * (1 << 19))]),
        ("too many fields", None, [file("image"), *(part(f"field{number}", "") for number in range(101))]),
        ("too many files", None, [file("image")] * 21),
    ]
    return [
        *(Bad(f"form: {name}", EDITS, param, body=form(EDITS, *parts)) for name, param, parts in forms),
        Bad("form: no prompt", EDITS, "prompt", body={"files": [file("image")]}),
        Bad("form: an empty prompt", EDITS, "prompt", body={"files": [file("image"), part("prompt", "")]}),
        Bad("variation: no picture", VARIATIONS, "image", body={"files": [part("n", "1")]}),
        Bad("variation: two pictures", VARIATIONS, "image", body={"files": [file("image"), file("image")]}),
    ]


def of_json() -> list[Bad]:
    bodies: list[tuple[str, str, dict[str, Any]]] = [
        ("a number for a picture", "image", edit(image=5)),
        ("no picture", "image", edit()),
        ("null for a picture", "image", edit(image=None)),
        ("no picture in a list", "images", edit(images=[])),
        ("two pictures in a list", "images", edit(images=[URL, {"image_url": URL}])),
        ("two pictures of two names", "images", edit(image=URL, images=[URL])),
        ("a list of masks", "mask", edit(image=URL, mask=[URL, URL])),
        ("a thousand pictures", "images", edit(images=[0] * 1000)),
        ("an object without a URL", "image", edit(image={})),
        ("a file's id", "images", edit(images=[{"file_id": "file-1"}])),
        ("a file's id for a mask", "mask", edit(image=URL, mask={"file_id": "file-1"})),
        ("an unknown field of a picture", "images", edit(images=[{"image_url": URL, "detail": "high"}])),
        ("an unknown field beside a picture", "image_urls", edit(image=URL, image_urls=[URL])),
        ("text for a number", "n", edit(image=URL, n="2")),
        ("a second pass", "hires", edit(image=URL, hires={"scale": 2})),
        ("a wrong second pass", "hires", edit(image=URL, hires={"scale": 9})),
        ("previews without a stream", "partial_images", edit(image=URL, partial_images=1)),
        ("an unknown model", "model", edit(image=URL, model="dall-e-2")),
        ("no prompt", "prompt", {"json": {"image": URL}}),
        ("an empty prompt", "prompt", {"json": {"image": URL, "prompt": " "}}),
    ]
    not_found = {"an unknown model": 404}
    return [
        Bad(f"JSON: {name}", EDITS, param, not_found.get(name, 400), body) for name, param, body in bodies
    ]


def of_inputs() -> list[Bad]:
    inputs: list[tuple[str, str, dict[str, Any]]] = [
        ("a number for a picture", "input.image", prediction(image=5)),
        ("a list of pictures", "input.image", prediction(image=[URL])),
        ("an object for a picture", "input.image", prediction(image={"image_url": URL})),
        ("two pictures", "input.input_image", prediction(image=URL, input_image=URL + "=")),
        ("a mask alone", "input.mask", prediction(mask=URL)),
        ("strength alone", "input.prompt_strength", prediction(prompt_strength=0.5)),
        ("another program's strength alone", "input.strength", prediction(strength=0.5)),
        ("too little strength", "input.prompt_strength", prediction(image=URL, prompt_strength=0.01)),
        ("a crop without a mask", "input.padding_mask_crop", prediction(image=URL, padding_mask_crop=8)),
        (
            "a mask's field without one",
            "input.preserve_unmasked",
            prediction(image=URL, preserve_unmasked=True),
        ),
        ("a second pass", "input.hires", prediction(image=URL, hires={"scale": 2})),
        ("pictures to refer to", "input.reference_images", prediction(image=URL, reference_images=[URL])),
        ("no prompt", "input.prompt", {"json": {"version": "shapes", "input": {"image": URL}}}),
    ]
    return [Bad(f"prediction: {name}", JOBS, param, 422, body) for name, param, body in inputs]


def lines(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    """A form in parts with the boundary "b"."""
    return b"".join(b"--b\r\n" + one + b"\r\n" for one in parts) + end


IMAGE_PART = b'content-disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + PNG
MASK_PART = b'content-disposition: form-data; name="mask"; filename="a.png"\r\n\r\n' + MASK
PROMPT_PART = b'content-disposition: form-data; name="prompt"\r\n\r\na red star'


def of_bodies(path: str) -> list[Bad]:
    missing = "prompt" if path == EDITS else "image"
    whole = lines(PROMPT_PART, IMAGE_PART)
    of_b = "multipart/form-data; boundary=b"
    bodies: list[tuple[str, str | None, int, str, bytes]] = [
        ("no boundary", None, 400, "multipart/form-data", whole),
        ("another boundary", None, 400, "multipart/form-data; boundary=c", whole),
        ("an endless boundary", None, 400, f"multipart/form-data; boundary={'b' * 5000}", whole),
        ("parts that are no form", "Content-Type", 400, "multipart/mixed; boundary=b", whole),
        ("another charset", "Content-Type", 400, f"{of_b}; charset=utf-7", whole),
        ("a form that is called JSON", None, 400, "application/json", whole),
        ("a picture", None, 400, "image/png", PNG),
        ("a form not in parts", None, 400, "application/x-www-form-urlencoded", b"prompt=a&image=b"),
        ("nothing", None, 400, "", b""),
        ("nothing of a form", None, 400, of_b, b""),
        ("the end of a form", missing, 400, of_b, b"--b--\r\n"),
        ("a part without a name", None, 400, of_b, lines(b"content-disposition: form-data\r\n\r\na")),
        ("a part without a head", None, 400, of_b, lines(b"a")),
        ("an end in the middle of the picture", None, 400, of_b, whole[: len(whole) // 2]),
        (
            "an end in the middle of the mask",
            None,
            400,
            of_b,
            lines(IMAGE_PART, PROMPT_PART, MASK_PART)[:-60],
        ),
        (
            "an end in the middle of a field",
            None,
            400,
            of_b,
            lines(
                IMAGE_PART,
                PROMPT_PART,
                b'content-disposition: form-data; name="strength"\r\n\r\n0.5',
                end=b"",
            )[:-2],
        ),
        ("a zero byte in the prompt", "prompt", 400, of_b, lines(IMAGE_PART, PROMPT_PART + b"\0")),
        ("a list", None, 400, "application/json", b"[]"),
        ("a broken JSON", None, 400, "application/json", b'{"prompt": "a", "image": "data:image/png;base64,'),
        ("half a character", None, 400, "application/json", b'{"prompt": "a", "image": "\\ud800"}'),
        ("deep JSON", None, 400, "application/json", b'{"image": ' + b"[" * 100_000),
        ("33 MiB of a form", None, 413, of_b, lines(IMAGE_PART + bytes(33 * 2**20), PROMPT_PART)),
        ("33 MiB of JSON", None, 413, "application/json", b" " * (33 * 2**20)),
        ("a compressed body", "Content-Encoding", 415, "application/json; charset=utf-8", b"\x1f\x8b"),
    ]
    return [
        Bad(name, path, param, status, {"content": body, "headers": {"content-type": content_type}})
        for name, param, status, content_type, body in bodies
    ]


BAD = {
    "files": of_files(),
    "masks": of_masks(),
    "URLs": of_urls(),
    "fields of a form": of_forms(),
    "fields in JSON": of_json(),
    "inputs of predictions": of_inputs(),
    "bodies of edits": of_bodies(EDITS),
    "bodies of variations": of_bodies(VARIATIONS),
}


async def answered(client: httpx.AsyncClient, bad: Bad) -> tuple[int, str | None]:
    """The status, and the field that the error names."""
    answer = await client.post(bad.path, **bad.body)
    if answer.is_success:
        return answer.status_code, None
    problem = answer.json()
    assert len(problem["detail"]) < 1000, "however long what it refuses is"
    return answer.status_code, problem["error"]["param"]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", BAD)
@in_loop
async def test_what_is_wrong_is_refused_and_the_field_is_named(tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path, []) as client:
        told = {bad.name: await answered(client, bad) for bad in BAD[kind]}
        expected = {bad.name: (bad.status, bad.param) for bad in BAD[kind]}
        wrong = {name: told[name] for name in expected if told[name] != expected[name]}
        assert not wrong, f"{wrong} is not {[expected[name] for name in wrong]}"
        await check_nothing_is_left(client, tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@in_loop
async def test_all_of_it_together_leaves_no_memory_behind(tmp_path: Path) -> None:
    """The first time, threads get memory of their own, and keep it."""
    resident: list[int] = []
    async with serving(tmp_path, []) as client:
        for _ in range(2):
            for bad in itertools.chain(*BAD.values()):
                await answered(client, bad)
            gc.collect()
            resident.append(resident_bytes())
    assert resident[1] - resident[0] < MAX_GROWTH_BYTES
