"""LiteLLM, as a client of OpenAI's dialect."""

import asyncio
import io
from typing import Any

import litellm
import pytest
from pictures import PROMPT, decoded, fetched, format_of, png, size_of


def given_to(url: str, **given: Any) -> dict[str, Any]:
    known = {"model": "openai/shapes", "prompt": PROMPT, "api_base": f"{url}/v1", "api_key": "any"}
    return known | {"size": "128x128", "max_retries": 0} | given


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"n": 2},
        {"size": "256x256"},
        {"size": "auto"},
        *({"quality": value} for value in ("auto", "standard", "medium", "hd")),
        {"user": "user-1234"},
        {"model": "openai/dall-e-2"},
        {"model": "openai/dall-e-3"},
        # LiteLLM does not send these by itself.
        {"extra_body": {"response_format": "b64_json", "style": "vivid"}},
        {"model": "openai/gpt-image-1"},
        {"extra_body": {"seed": 5, "num_inference_steps": 2}},
    ],
    ids=str,
)
def test_a_picture(url: str, given: dict[str, Any]) -> None:
    answer = litellm.image_generation(**given_to(url, **given))
    assert len(answer.data) == given.get("n", 1)
    assert format_of(decoded(answer.data[0].b64_json)) == "PNG"


def test_a_url(url: str) -> None:
    answer = litellm.image_generation(**given_to(url, extra_body={"response_format": "url"}))
    assert size_of(fetched(answer.data[0].url)) == (128, 128)


def test_asynchronously(url: str) -> None:
    answer = asyncio.run(litellm.aimage_generation(**given_to(url)))
    assert size_of(decoded(answer.data[0].b64_json)) == (128, 128)


def test_what_cannot_be_done_is_refused(url: str) -> None:
    with pytest.raises(litellm.BadRequestError, match="size: "):
        litellm.image_generation(**given_to(url, size="1024x1024"))
    with pytest.raises(litellm.NotFoundError, match="'sdxl' is not served here"):
        litellm.image_generation(**given_to(url, model="openai/sdxl"))


def test_an_edit(url: str) -> None:
    answer = litellm.image_edit(
        model="openai/gpt-image-1",
        image=io.BytesIO(png()),
        prompt=PROMPT,
        api_base=f"{url}/v1",
        api_key="any",
    )
    assert size_of(decoded(answer.data[0].b64_json)) == (128, 128)
