"""A1111's text about pictures, as A1111 reads it: in files of pictures, and by `png-info`."""

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from deployments.engine.images import encode_image
from deployments.engine.messages import ImageFormat
from serve.calls.image_metadata import image_metadata
from serve.generation import HiresPass, StartPicture
from serve.http.a1111.infotext import parameters_of
from tests.generation_requests import generation_request
from tests.job_stores import in_loop
from tests.picture_files import data_url, file_of, picture, png_of_header
from tests.unit.test_authentication import serving
from tests.unit.test_infotext import PARAMETER

PNG_INFO = "/sdapi/v1/png-info"
HIRES = HiresPass(
    upscaler="lanczos",
    scale=1.5,
    height=192,
    width=192,
    latent_shape=(24, 24),
    strength=0.6,
    num_inference_steps=10,
    num_calls=6,
)
START = StartPicture(
    sha256="ab",
    mask_sha256="cd",
    has_mask=True,
    height=128,
    width=128,
    crop=(0, 0, 64, 64),
    padding_mask_crop=32,
    mask_blur=4,
    black_is_repainted=True,
    fills_mask=True,
)
REQUEST = generation_request(prompt="a star,\nNegative: none\na (moon:1.2)", negative_prompt="blue,\ngreen")


async def read(client: httpx.AsyncClient, data: bytes) -> Any:
    answer = await client.post(PNG_INFO, json={"image": data_url(data)})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"Sampler": "DDIM", "Seed": "7", "Steps": "10", "CFG scale": "5", "RNG": "CPU"}),
        ({"sampler": "KDPM2", "height": 64}, {"Sampler": "DPM2", "Size": "128x64", "Size-1": "128"}),
        ({"model": 'a "b", c: d'}, {"Model": 'a "b", c: d', "Size-2": "128"}),
        (
            {"hires": HIRES},
            {"Hires upscale": "1.5", "Hires upscaler": "Lanczos", "Denoising strength": "0.6"},
        ),
        (
            {"start": START, "strength": 0.75},
            {
                "Denoising strength": "0.75",
                "Mask mode": "Inpaint not masked",
                "Mask blur": "4",
                "Masked content": "fill",
                "Inpaint area": "Only masked",
                "Masked area padding": "32",
            },
        ),
    ],
)
@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/webp"])
@in_loop
async def test_our_files_are_read_back(
    tmp_path: Path, changes: dict[str, Any], expected: dict[str, str], media_type: str
) -> None:
    request = generation_request(**{"prompt": REQUEST.prompt, "negative_prompt": "blue,\ngreen", **changes})
    metadata = image_metadata(request, request.seed)
    file = encode_image(np.zeros((128, 128, 3), np.uint8), ImageFormat(media_type), metadata)
    async with serving(tmp_path, []) as client:
        answer = await read(client, file.data)
    assert answer["info"] == metadata["parameters"]
    assert answer["items"].get("seed") == ("7" if media_type == "image/png" else None)
    parameters = answer["parameters"]
    assert (parameters["Prompt"], parameters["Negative prompt"]) == (request.prompt, "blue,\ngreen")
    assert parameters.items() >= expected.items()
    # And A1111's own pattern finds the same pairs.
    pairs = PARAMETER.findall(answer["info"].splitlines()[-1])
    theirs = {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}
    assert theirs == {name: value for name, value in parameters.items() if name in theirs}
    assert theirs.keys() >= {"Steps", "Sampler", "CFG scale", "Seed", "Size", "Model", "Version"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        (" \n", {}),
        ("a star", {"Prompt": "a star", "Negative prompt": ""}),
        ("a: b, c: d", {"Prompt": "a: b, c: d", "Negative prompt": ""}),
        ("a\nNegative prompt: b\nc", {"Prompt": "a", "Negative prompt": "b\nc"}),
        (
            'a\nSteps: 20, Sampler: DPM++ 2M Karras, Size: 512x768, Lora hashes: "a: 1, b: 2", Bad: "x',
            {
                "Prompt": "a",
                "Negative prompt": "",
                "Steps": "20",
                "Sampler": "DPM++ 2M Karras",
                "Size": "512x768",
                "Size-1": "512",
                "Size-2": "768",
                "Lora hashes": "a: 1, b: 2",
                "Bad": '"x',
            },
        ),
    ],
)
def test_a_text_is_read_as_a1111_reads_it(text: str, expected: dict[str, str]) -> None:
    assert parameters_of(text) == expected


@pytest.mark.parametrize("text", ["a" * 10**6, 'ab: "' * 10**5, "ab: " * 10**5, 'ab: "\\' * 10**5])
def test_no_text_takes_minutes(text: str) -> None:
    assert parameters_of(text)["Negative prompt"] == ""


@in_loop
async def test_other_files(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        texts = PngImagePlugin.PngInfo()
        texts.add_text("Software", "a camera")
        plain = file_of(picture(), pnginfo=texts)
        assert await read(client, plain) == {"info": "", "items": {"Software": "a camera"}, "parameters": {}}
        exif = Image.Exif()
        exif[0x9286] = b"ASCII\0\0\0hello"
        for data in (file_of(picture(), "JPEG"), file_of(picture(), "JPEG", exif=exif)):
            assert (await read(client, data))["info"] == ""
        assert (await read(client, png_of_header(100_000, 100_000)))["info"] == "", "no pixel is read"
        bare = base64.b64encode(plain).decode()
        assert (await client.post(PNG_INFO, json={"image": bare})).status_code == 200
        for wrong in (
            "",
            "x",
            "data:image/png;base64,eA==",
            base64.b64encode(file_of(picture(), "GIF")).decode(),
        ):
            answer = await client.post(PNG_INFO, json={"image": wrong})
            assert (answer.status_code, answer.json()["error"]["param"]) == (422, "image")
        assert (await client.post(PNG_INFO, json={})).status_code == 422


@in_loop
async def test_a_small_file_with_endless_text_is_refused(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    for name in ("parameters", "other"):
        texts.add_text(name, 600_000 * "\x01", zip=True)
    data = file_of(picture(), pnginfo=texts)
    async with serving(tmp_path, []) as client:
        answer = await client.post(PNG_INFO, json={"image": data_url(data)})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "image")
    assert answer.json()["detail"] == "image: has 1200000 characters of text; at most 1048576 are read."
