"""Images from pictures, over HTTP but without Ray: how pictures come."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from PIL import Image

from deployments.engine.messages import Picture
from serve.generation import GenerationRequest
from serve.jobs.objects import ObjectStore, answer_key
from tests.job_stores import in_loop
from tests.picture_files import (
    QUARTERS,
    animated,
    data_url,
    file_of,
    half_transparent,
    picture,
    png_of_header,
    quarters,
    right_half,
)
from tests.unit.test_authentication import ALICE, API_KEYS, BOB, JOBS, by, serving

EDITS, VARIATIONS, FILES = "/v1/images/edits", "/v1/images/variations", "/v1/files"
PROMPT = "a red star"
PNG, MASK = file_of(picture()), file_of(right_half())
URL = data_url(PNG)
MAX_BYTES = 20 * 2**20
Seen = list[tuple[GenerationRequest, Picture | None]]


def part(name: str, value: str) -> tuple[str, tuple[None, str]]:
    return name, (None, value)


def file(name: str, data: bytes = PNG) -> tuple[str, tuple[str, bytes, str]]:
    return name, ("picture.png", data, "image/png")


def form(path: str, *parts: Any) -> dict[str, Any]:
    return {"files": [part("prompt", PROMPT), *parts] if path == EDITS else list(parts)}


def prediction(**given: Any) -> dict[str, Any]:
    return {"json": {"version": "shapes", "input": {"prompt": PROMPT, **given}}}


def edit(**given: Any) -> dict[str, Any]:
    return {"json": {"prompt": PROMPT, **given}}


def stored(folder: Path) -> list[str]:
    """The files in the object store."""
    objects = folder / "objects"
    return [str(path.relative_to(objects)) for path in objects.rglob("*") if path.is_file()]


async def check_nothing_is_left(client: httpx.AsyncClient, folder: Path) -> None:
    assert stored(folder) == []
    assert (await client.get(JOBS)).json()["results"] == []


@asynccontextmanager
async def elsewhere(answer: Callable[[web.Request], web.StreamResponse]) -> AsyncIterator[str]:
    """The URL of a picture on another server."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return answer(request)

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    async with TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("/picture.png"))


def redirect(request: web.Request) -> web.StreamResponse:
    if request.path == "/other.png":
        return web.Response(body=PNG)
    return web.Response(status=302, headers={"location": "/other.png"})


@pytest.mark.parametrize(
    ("answer", "status", "why"),
    [
        (redirect, 400, "answered 302, and redirects are not followed"),
        (lambda _: web.Response(status=404, body=PNG), 400, "answered 404"),
        (lambda _: web.Response(status=500), 400, "answered 500"),
        (lambda _: web.Response(status=204), 400, "answered 204"),
        (
            lambda _: web.Response(text="<title>Sign in</title>", content_type="text/html"),
            415,
            "no PNG, JPEG",
        ),
        (lambda _: web.Response(body=b""), 415, "no PNG, JPEG or WebP file"),
        (lambda _: web.Response(body=PNG[:-40]), 415, "damaged or incomplete"),
        (lambda _: web.Response(body=bytes(MAX_BYTES + 1)), 413, f"at most {MAX_BYTES} are allowed"),
        (lambda _: web.Response(body=png_of_header(100_000, 100_000)), 413, "pixels"),
        (lambda _: web.Response(body=animated("GIF")), 415, "no PNG, JPEG or WebP file"),
    ],
)
@in_loop
async def test_what_another_server_answers_may_be_no_picture(
    tmp_path: Path, answer: Callable[[web.Request], web.StreamResponse], status: int, why: str
) -> None:
    async with serving(tmp_path, [], allow_private_webhooks=True) as client, elsewhere(answer) as url:
        for path, body, expected, param in (
            (EDITS, edit(image_url=url), status, "image_url"),
            (EDITS, form(EDITS, file("image"), part("mask", url)), status, "mask"),
            (VARIATIONS, form(VARIATIONS, part("image", url)), status, "image"),
            (JOBS, prediction(image=url), 422, "input.image"),
        ):
            refused = await client.post(path, **body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (expected, param), refused.text
            assert why in refused.json()["detail"]
        await check_nothing_is_left(client, tmp_path)


@in_loop
async def test_a_picture_that_never_ends_is_left_at_the_limit(tmp_path: Path) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 10 * MAX_BYTES:
            await response.write(bytes(2**20))
            sent += 2**20
        return response

    app = web.Application()
    app.router.add_get("/", endless)
    async with (
        serving(tmp_path, [], allow_private_webhooks=True) as client,
        TestServer(app, host="127.0.0.1") as server,
    ):
        refused = await client.post(EDITS, **edit(image=str(server.make_url("/"))))
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "image_too_large")
        assert sent < 2 * MAX_BYTES
        await check_nothing_is_left(client, tmp_path)


@in_loop
async def test_a_server_that_is_silent_holds_nobody_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(_: web.Request) -> web.StreamResponse:
        await forever.wait()
        return web.Response()

    forever = asyncio.Event()
    monkeypatch.setattr("serve.http.picture_sources._TIMEOUT_S", 0.1)
    app = web.Application()
    app.router.add_get("/", silent)
    async with (
        serving(tmp_path, [], allow_private_webhooks=True) as client,
        TestServer(app, host="127.0.0.1") as server,
    ):
        refused = await client.post(EDITS, **edit(image=str(server.make_url("/"))))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "image")
        assert "did not answer in time" in refused.json()["detail"]
        forever.set()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x16\x03\x01",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        HEAD + b"x: " + b"a" * 100_000 + b"\r\n\r\n",
        HEAD + b"content-length: -1\r\n\r\n",
        HEAD + b"content-length: 100000\r\n\r\n" + PNG,
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n" + PNG,
        HEAD + b"content-encoding: gzip\r\n\r\n" + gzip.compress(PNG),
        b"HTTP/1.1 301 Moved\r\nlocation: http://[\r\ncontent-length: 0\r\n\r\n",
    ],
)
@in_loop
async def test_what_is_no_answer_is_no_picture(tmp_path: Path, sent: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        writer.close()

    async with (
        serving(tmp_path, [], allow_private_webhooks=True) as client,
        await asyncio.start_server(answer, "127.0.0.1", 0) as server,
    ):
        host, port = server.sockets[0].getsockname()
        refused = await client.post(EDITS, **edit(image_url=f"http://{host}:{port}/"))
        assert refused.status_code in (400, 415), refused.text
        assert refused.json()["error"]["param"] == "image_url"
        await check_nothing_is_left(client, tmp_path)


@in_loop
async def test_no_own_address_is_asked_unless_it_is_allowed(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response(body=PNG)

    async with serving(tmp_path, []) as client, elsewhere(answer) as url:
        refused = await client.post(EDITS, **edit(image=url))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "image")
        assert asked == []
    async with serving(tmp_path, [], allow_private_webhooks=True) as client, elsewhere(answer) as url:
        assert (await client.post(EDITS, **edit(image=url))).status_code == 200
        assert asked == ["/picture.png"]


def only(seen: Seen) -> tuple[GenerationRequest, Picture]:
    [(request, picture)] = seen
    assert picture is not None
    seen.clear()
    return request, picture


def shown(pixels: np.ndarray[Any, Any]) -> list[str]:
    return quarters(Image.fromarray(pixels))


@in_loop
async def test_a_picture_comes_in_any_of_its_forms(tmp_path: Path) -> None:
    seen: Seen = []
    async with (
        serving(tmp_path, [], seen=seen, allow_private_webhooks=True) as client,
        elsewhere(lambda _: web.Response(body=PNG)) as url,
    ):
        uploaded = await client.post(FILES, files={"content": ("a.png", PNG, "image/png")})
        key = answer_key("image/png")
        await ObjectStore(str(tmp_path / "objects")).put(key, PNG, "image/png")
        own = uploaded.json()["urls"]["get"]
        for path, body in (
            (EDITS, form(EDITS, file("image"))),
            (EDITS, form(EDITS, file("image[]"))),
            (EDITS, form(EDITS, part("image", URL))),
            (EDITS, form(EDITS, part("image_url", own))),
            (EDITS, edit(images=[{"image_url": URL}])),
            (EDITS, edit(images=[URL])),
            (EDITS, edit(image={"image_url": own})),
            (EDITS, edit(image=URL)),
            (EDITS, edit(image=URL.rstrip("="))),
            (EDITS, edit(image=URL[:200] + "\r\n" + URL[200:])),
            (EDITS, edit(image_url=URL.replace("image/png", "image/png;charset=utf-8"))),
            (EDITS, edit(init_image=own)),
            (EDITS, edit(init_image=own.replace("http://midstep", "https://another.name:8443/prefix"))),
            (EDITS, edit(input_image=f"http://midstep/v1/files/{key}")),
            (EDITS, edit(image=url)),
            (VARIATIONS, form(VARIATIONS, file("image"))),
            (VARIATIONS, {"json": {"image": own}}),
            ("/images/edits", form(EDITS, file("image"))),
        ):
            answer = await client.post(path, **body)
            assert answer.status_code == 200, answer.text
            request, picture = only(seen)
            assert picture.pixels.shape == (64, 96, 3)
            assert shown(picture.pixels) == QUARTERS
            assert picture.crop is None
            assert request.start is not None
            assert (request.height, request.width, request.strength) == (64, 96, 0.8)
            assert request.prompt == (PROMPT if path != VARIATIONS else "")
            assert answer.json()["size"] == "96x64"


@in_loop
async def test_a_mask_comes_with_it(tmp_path: Path) -> None:
    seen: Seen = []
    mask_url, own = data_url(MASK), file_of(half_transparent(picture()))
    async with serving(tmp_path, [], seen=seen) as client:
        for body in (
            form(EDITS, file("image"), file("mask", MASK), part("strength", "0.5")),
            form(EDITS, part("image", URL), part("mask", mask_url), part("strength", "0.5")),
            edit(image=URL, mask={"image_url": mask_url}, strength=0.5),
            edit(image=URL, mask_image=mask_url, denoising_strength=0.5),
            edit(image=URL, mask=data_url(own), strength=0.5),
            form(EDITS, file("image", own), part("strength", "0.5")),
        ):
            assert (await client.post(EDITS, **body)).status_code == 200
            request, picture_seen = only(seen)
            assert picture_seen.has_mask
            assert shown(picture_seen.pixels[..., 3]) == ["black", "white", "black", "white"]
            assert request.strength == 0.5
        refused = await client.post(JOBS, **prediction(image=data_url(own), preserve_unmasked=True))
        assert refused.json()["error"]["param"] == "input.preserve_unmasked", "transparency is no mask there"


@in_loop
async def test_fields_of_a_form_are_those_of_json(tmp_path: Path) -> None:
    seen: Seen = []
    fields = {
        "n": 2,
        "seed": 7,
        "size": "128x64",
        "num_inference_steps": 10,
        "guidance_scale": 2.5,
        "sampler": "Euler a",
        "deterministic": True,
        "output_format": "webp",
        "output_compression": 80,
        "quality": "high",
        "input_fidelity": "high",
        "strength": 0.6,
    }
    as_text = [
        part(name, value if isinstance(value, str) else json.dumps(value)) for name, value in fields.items()
    ]
    async with serving(tmp_path, [], seen=seen) as client:
        sent = await client.post(EDITS, **form(EDITS, file("image"), *as_text))
        assert sent.status_code == 200, sent.text
        from_form = only(seen)[0]
        answer = await client.post(EDITS, **edit(image=URL, **fields))
        assert answer.status_code == 200, answer.text
        from_json = only(seen)[0]
        assert replace(from_form, request_id="") == replace(from_json, request_id="")
        assert [one.partition(":")[0] for one in answer.json()["warnings"]] == ["quality", "input_fidelity"]


@in_loop
async def test_a_crop_answers_in_the_pictures_size(tmp_path: Path) -> None:
    seen: Seen = []
    large, mask = file_of(picture(320, 200)), Image.new("L", (320, 200))
    mask.paste(255, (160, 100, 190, 120))
    async with serving(tmp_path, [], seen=seen) as client:
        answer = await client.post(
            EDITS,
            **form(EDITS, file("image", large), file("mask", file_of(mask)), part("padding_mask_crop", "8")),
        )
        assert answer.status_code == 200, answer.text
        request, picture_seen = only(seen)
        assert (request.height, request.width) == (128, 128)
        assert picture_seen.pixels.shape == (200, 320, 4)
        assert picture_seen.crop is not None
        assert answer.json()["size"] == "320x200"


@in_loop
async def test_a_media_type_may_be_in_capitals(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        request = client.build_request("POST", EDITS, **form(EDITS, file("image")))
        kind, _, boundary = request.headers["content-type"].partition(";")
        request.headers["content-type"] = f"{kind.title()};{boundary}"
        answer = await client.send(request)
        assert answer.status_code == 200, answer.text


@in_loop
async def test_a_variation_needs_no_prompt_and_is_guided_by_one(tmp_path: Path) -> None:
    seen: Seen = []
    async with serving(tmp_path, [], seen=seen) as client:
        for prompt, guidance_scale in (([], 1.0), ([part("prompt", "a star")], 5.0)):
            answer = await client.post(VARIATIONS, files=[file("image"), *prompt])
            assert answer.status_code == 200
            assert only(seen)[0].guidance_scale == guidance_scale


@in_loop
async def test_an_edit_is_streamed(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        answer = await client.post(EDITS, **form(EDITS, file("image"), part("stream", "true")))
        assert "event: image_edit.completed" in answer.text
        refused = await client.post(EDITS, **form(EDITS, file("image", b"x"), part("stream", "true")))
        assert (refused.status_code, refused.json()["error"]["param"]) == (415, "image")


@in_loop
async def test_an_uploaded_file_is_for_whoever_has_its_url(tmp_path: Path) -> None:
    async with serving(tmp_path, API_KEYS) as client:
        uploaded = await client.post(FILES, files={"content": ("a.png", PNG, "image/png")}, headers=by(ALICE))
        url = httpx.URL(uploaded.json()["urls"]["get"])
        assert (await client.post(EDITS, **edit(image=str(url)), headers=by(BOB))).status_code == 200
        wrong = str(url.copy_merge_params({"signature": "a"}))
        refused = await client.post(EDITS, **edit(image=wrong), headers=by(BOB))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "image")
        assert (await client.post(EDITS, **edit(image=str(url)))).status_code == 401


@in_loop
async def test_an_uploaded_file_that_is_no_picture_is_refused_as_such(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        for data in (b"", b"no picture"):
            uploaded = await client.post(FILES, files={"content": ("a.png", data, "image/png")})
            assert uploaded.status_code == 201
            refused = await client.post(EDITS, **edit(image=uploaded.json()["urls"]["get"]))
            assert (refused.status_code, refused.json()["error"]["param"]) == (415, "image"), refused.text
