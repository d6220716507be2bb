"""Images that start from pictures, over HTTP: edits, variations, jobs, a second pass."""

import asyncio
import base64
import io
import random
from typing import Any

import httpx
import numpy as np
import pytest
import ray
import replicate
from PIL import Image

from tests.integration.conftest import replica, wait_for
from tests.integration.predictions import FINISH_TIMEOUT_S, create, finished, get
from tests.shapes import evaluate, evaluate_edits, scenes

EDITS, GENERATIONS = "/v1/images/edits", "/v1/images/generations"
PROMPT = "a green circle left of a red star on a blue background"


def drawn() -> tuple[Image.Image, Image.Image, Any]:
    """A green circle left of a white square; a mask of the square; and what it shall be."""
    things = (scenes.Thing("green", "circle", "medium"), scenes.Thing("white", "square", "medium"))
    circle, square = scenes.place(scenes.Scene("blue", things, "left of"), random.Random(1))
    wanted = scenes.Scene("blue", (things[0], scenes.Thing("red", "star", None)), "left of")
    return scenes.draw("blue", (circle, square)), evaluate_edits.box_around(square), wanted


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def data_url(picture: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}"


def picture_of(response: httpx.Response) -> Image.Image:
    assert response.status_code == 200, response.text
    return Image.open(io.BytesIO(base64.b64decode(response.json()["data"][0]["b64_json"])))


def largest_difference(left: Image.Image, right: Image.Image, outside: Image.Image) -> int:
    """Where the mask is black, in grey levels."""
    difference = np.abs(np.asarray(left.convert("RGB")).astype(int) - np.asarray(right.convert("RGB")))
    return int(difference[np.asarray(outside) == 0].max())


def test_the_masked_object_is_repainted_and_the_rest_kept(client: httpx.Client) -> None:
    picture, mask, wanted = drawn()
    form = {"prompt": wanted.prompt(), "seed": "1", "preserve_unmasked": "true"}
    files = {"image": ("before.png", png(picture)), "mask": ("mask.png", png(mask))}
    made = picture_of(client.post(EDITS, data=form, files=files))
    assert evaluate.judge(wanted, np.asarray(made)) == evaluate.Verdict(True, True, True)
    assert largest_difference(made, picture, mask) <= 2
    text: dict[str, str] = made.text  # type: ignore[attr-defined]
    assert (text["strength"], text["preserve_unmasked"], len(text["mask_sha256"])) == ("1.0", "True", 64)
    assert "Denoising strength: 1.0" in text["parameters"]


def test_only_a_crop_is_denoised_and_the_picture_keeps_its_size(client: httpx.Client) -> None:
    picture, mask, wanted = drawn()
    large, large_mask = picture.resize((300, 300)), mask.resize((300, 300))
    body = {
        "prompt": "a red star on a blue background",
        "image": data_url(large),
        "mask": data_url(large_mask),
        "padding_mask_crop": 8,
        "seed": 1,
    }
    answer = client.post(EDITS, json=body)
    made = picture_of(answer)
    assert (made.size, answer.json()["size"]) == ((300, 300), "300x300")
    assert largest_difference(made, large, large_mask) <= 2
    small = np.asarray(made.resize((128, 128), Image.Resampling.BOX))
    assert evaluate.judge(wanted, small).colour


def test_pictures_share_forwards_with_prompts_and_stay_the_same(base_url: str) -> None:
    """Each kind of request, deterministic: alone, and together with all others."""
    picture, mask, _ = drawn()
    common = {
        "prompt": PROMPT,
        "seed": 5,
        "deterministic": True,
        "num_inference_steps": 6,
        "sampler": "Euler a",
    }
    kinds: list[tuple[str, dict[str, Any]]] = [
        (GENERATIONS, {}),
        (GENERATIONS, {"guidance_end": 0.5}),
        (GENERATIONS, {"hires": {"scale": 1.25, "upscaler": "latent"}}),
        (GENERATIONS, {"hires": {"scale": 1.25, "upscaler": "lanczos"}}),
        (EDITS, {"image": data_url(picture), "strength": 0.6}),
        (EDITS, {"image": data_url(picture), "mask": data_url(mask)}),
        (EDITS, {"image": data_url(picture), "mask": data_url(mask), "padding_mask_crop": 4}),
    ]

    async def one(client: httpx.AsyncClient, path: str, given: dict[str, Any]) -> str:
        response = await client.post(path, json=common | given)
        assert response.status_code == 200, response.text
        data: str = response.json()["data"][0]["b64_json"]
        return data

    async def run() -> tuple[list[str], list[str]]:
        async with httpx.AsyncClient(base_url=base_url, timeout=300) as client:
            alone = [await one(client, *kind) for kind in kinds]
            return alone, await asyncio.gather(*(one(client, *kind) for kind in reversed(kinds)))

    alone, together = asyncio.run(run())
    assert together[::-1] == alone


@pytest.mark.parametrize(
    ("deployment", "progress", "given"),
    [
        ("Runner", 0.6, {"hires": {"scale": 1.25}}),
        ("Denoiser", 0.6, {"hires": {"scale": 1.25, "upscaler": "latent"}}),
        ("Runner", 0.1, {"image": data_url(drawn()[0]), "mask": data_url(drawn()[1])}),
    ],
    ids=["second pass", "second pass of latents", "mask"],
)
def test_a_job_goes_on_after_a_death_with_the_same_bytes(
    client: httpx.Client, deployment: str, progress: float, given: dict[str, Any]
) -> None:
    steps = {"num_inference_steps": 30, "deterministic": True, "seed": 3, "prompt": PROMPT}
    whole = finished(client, create(client, **steps, **given)["id"])
    job = create(client, **steps, **given)
    wait_for(lambda: get(client, job["id"])["progress"] > progress, timeout_s=FINISH_TIMEOUT_S)
    ray.kill(replica(deployment), no_restart=True)
    again = finished(client, job["id"])
    assert again["status"] == "succeeded", again
    files = [client.get(one["output"][0]).content for one in (whole, again)]
    assert files[0] == files[1]


@pytest.mark.parametrize("strategy", ["url", "base64"])
def test_replicates_own_client_sends_pictures(base_url: str, strategy: Any) -> None:
    picture, mask, wanted = drawn()
    replicates = replicate.Client(api_token="any", base_url=base_url)
    given = {
        "prompt": wanted.prompt(),
        "seed": 1,
        "image": io.BytesIO(png(picture)),
        "mask": io.BytesIO(png(mask)),
    }
    [url] = replicates.run("midstep/shapes", input=given, file_encoding_strategy=strategy)
    replicates._client.close()  # it has no method for this
    made = Image.open(io.BytesIO(httpx.get(str(url)).content))
    assert evaluate.judge(wanted, np.asarray(made)) == evaluate.Verdict(True, True, True)
