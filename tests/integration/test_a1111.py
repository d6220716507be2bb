"""A1111's dialect over HTTP: its pictures are those of the other dialects, and can be followed and ended."""

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.integration.conftest import wait_for
from tests.integration.test_edits_api import data_url, drawn, largest_difference
from tests.shapes import evaluate

TXT2IMG, IMG2IMG, PROGRESS = "/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/progress"
PROMPT = "a red star on a blue background"
BODY = {"prompt": PROMPT, "seed": 5, "steps": 6, "sampler_name": "Euler a", "deterministic": True}


@pytest.fixture(autouse=True)
def options(client: httpx.Client) -> Iterator[dict[str, Any]]:
    """As they are before a test, and again after it."""
    before: dict[str, Any] = client.get("/sdapi/v1/options").raise_for_status().json()
    yield before
    client.post("/sdapi/v1/options", json=before).raise_for_status()


def made(client: httpx.Client, path: str = TXT2IMG, **body: Any) -> tuple[list[bytes], dict[str, Any]]:
    """The files of the images, and what is said of them."""
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    info: dict[str, Any] = json.loads(answer.json()["info"])
    return [base64.b64decode(one) for one in answer.json()["images"]], info


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_pictures_are_those_of_the_other_dialects(client: httpx.Client) -> None:
    files, info = made(client, **BODY, batch_size=2, n_iter=1, cfg_scale=7)
    native = {
        "prompt": PROMPT,
        "seed": 5,
        "num_inference_steps": 6,
        "sampler": "Euler a",
        "deterministic": True,
        "guidance_scale": 7,
        "n": 2,
        "prompt_syntax": "a1111",
        "long_prompts": "chunk",
    }
    answer = client.post("/v1/images/generations", json=native).raise_for_status().json()
    assert [base64.b64decode(one["b64_json"]) for one in answer["data"]] == files
    assert info["all_seeds"] == [5, 6]
    assert [opened(data).info["parameters"] for data in files] == info["infotexts"]


def test_a_picture_is_read_back(client: httpx.Client) -> None:
    [data], info = made(client, **BODY, negative_prompt="blue")
    encoded = base64.b64encode(data).decode()
    read = client.post("/sdapi/v1/png-info", json={"image": encoded}).raise_for_status().json()
    assert read["info"] == info["infotexts"][0]
    parameters = read["parameters"]
    again = {
        "prompt": parameters["Prompt"],
        "negative_prompt": parameters["Negative prompt"],
        "seed": parameters["Seed"],
        "steps": parameters["Steps"],
        "cfg_scale": parameters["CFG scale"],
        "sampler_name": parameters["Sampler"],
        "width": parameters["Size-1"],
        "height": parameters["Size-2"],
        "deterministic": True,
    }
    assert made(client, **again)[0] == [data]


def test_a_second_pass(client: httpx.Client) -> None:
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Lanczos", "denoising_strength": 0.6}
    [data], info = made(client, **BODY, **hires)
    native = {
        "prompt": PROMPT,
        "seed": 5,
        "num_inference_steps": 6,
        "sampler": "Euler a",
        "deterministic": True,
        "prompt_syntax": "a1111",
        "long_prompts": "chunk",
        "hires": {"scale": 1.5, "upscaler": "lanczos", "strength": 0.6, "num_inference_steps": 6},
    }
    answer = client.post("/v1/images/generations", json=native).raise_for_status().json()
    assert base64.b64decode(answer["data"][0]["b64_json"]) == data
    assert opened(data).size == (192, 192)
    assert "Hires upscale: 1.5, Hires steps: 6, Hires upscaler: Lanczos" in info["infotexts"][0]


def test_what_is_masked_is_repainted_and_the_rest_kept(client: httpx.Client) -> None:
    picture, mask, wanted = drawn()
    body = {
        "prompt": wanted.prompt(),
        "seed": 1,
        "init_images": [data_url(picture)],
        "mask": data_url(mask).partition(",")[2],
        "denoising_strength": 1,
    }
    whole = {"inpaint_full_res": False, "mask_blur": 0, "inpainting_fill": 1}
    [data], info = made(client, IMG2IMG, **body, **whole)
    assert evaluate.judge(wanted, np.asarray(opened(data))) == evaluate.Verdict(True, True, True)
    assert largest_difference(opened(data), picture, mask) <= 2
    assert info["denoising_strength"] == 1
    # A1111's defaults: only what is masked, with a soft edge, filled with the colours around it.
    [data], info = made(client, IMG2IMG, **body)
    assert opened(data).size == picture.size
    with_edge = mask.convert("L").filter(ImageFilter.MaxFilter(31))
    assert largest_difference(opened(data), picture, with_edge) <= 2
    assert "Mask blur: 4, Masked content: fill, Inpaint area: Only masked" in info["infotexts"][0]


def test_progress_and_interrupt(client: httpx.Client, base_url: str) -> None:
    long = BODY | {"steps": 100, "n_iter": 8, "deterministic": False}
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=base_url, timeout=120) as other:
        running = pool.submit(made, other, **long)
        shown: dict[str, Any] = {}

        def has_preview() -> bool:
            shown.update(client.get(PROGRESS).raise_for_status().json())
            assert not running.done(), "it was too fast"
            return shown["current_image"] is not None

        wait_for(has_preview, timeout_s=120)
        assert 0 < shown["progress"] < 1
        assert (shown["state"]["job_count"], shown["state"]["sampling_steps"]) == (1, 100)
        assert opened(base64.b64decode(shown["current_image"])).size == (128, 128)
        client.post("/sdapi/v1/interrupt").raise_for_status()
        files, info = running.result(60)
    assert info["interrupted"] is True
    assert info["all_seeds"] == list(range(5, 13))
    assert 1 <= len(files) == len(info["infotexts"])
    for data, infotext in zip(files, info["infotexts"], strict=True):
        assert opened(data).size == (128, 128)
        assert opened(data).info["parameters"] == infotext
    assert "Interrupted: " in "".join(info["infotexts"])
    idle = client.get(PROGRESS).json()
    assert (idle["progress"], idle["state"]["job_count"], idle["state"]["interrupted"]) == (0, 0, True)


def test_a_model_is_chosen_for_all_requests_or_for_one(client: httpx.Client) -> None:
    titles = [one["title"] for one in client.get("/sdapi/v1/sd-models").json()]
    assert titles == ["shapes", "outlines"]
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "outlines"}).json() is None
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "outlines"
    fast = BODY | {"steps": 2}
    assert made(client, **fast)[1]["sd_model_name"] == "outlines"
    own = {"sd_model_checkpoint": "shapes.safetensors [0123456789]"}
    assert made(client, **fast, override_settings=own)[1]["sd_model_name"] == "shapes"
