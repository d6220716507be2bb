"""Bodies of the images dialect: an accepted one gives a valid request, others are refused in a sentence."""

import json
from typing import Any, cast

import pytest

from deployments.engine.messages import ImageFormat
from deployments.engine.models import ModelInfo
from serve.config.app import AppConfig
from serve.errors import InvalidRequestError, MidstepError, ModelNotFoundError
from serve.generation import GenerationRequest
from serve.http.front_desk import FrontDesk
from serve.http.openai.schema import read_body, wanted_of
from serve.served_model import MAX_SEED, ServedModel

INFO = ModelInfo(
    scheduler_config={"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    scale_factor=8,
    default_height=128,
    default_width=128,
)
MODEL = ServedModel.of(AppConfig(), INFO, lambda: None)


def parse(**body: Any) -> GenerationRequest:
    return MODEL.accept(wanted_of(read_body(json.dumps(body).encode())), "id")


def test_a_prompt_is_enough() -> None:
    request = parse(prompt="a star")
    assert (request.width, request.height, request.num_images) == (128, 128, 1)
    assert request.image_format == ImageFormat("image/png", None)
    assert request.negative_prompt is None
    assert request.sampler == "DPM++ 2M"
    assert request.seed != parse(prompt="a star").seed


def test_what_is_said_is_taken() -> None:
    request = parse(
        prompt="a star",
        negative_prompt="",
        size="256x192",
        n=3,
        seed=5,
        num_inference_steps=8,
        guidance_scale=2,
        sampler="euler a",
        deterministic=True,
        output_format="webp",
        output_compression=50,
        stream=True,
        partial_images=2,
        priority=1,
    )
    assert (request.width, request.height, request.num_images, request.seed) == (256, 192, 3, 5)
    assert (request.num_inference_steps, request.guidance_scale, request.sampler) == (8, 2.0, "Euler a")
    assert (request.deterministic, request.num_previews, request.priority) == (True, 2, 1)
    assert request.image_format == ImageFormat("image/webp", 50)
    assert request.negative_prompt == ""


def test_null_is_the_same_as_unsaid() -> None:
    """The OpenAI client sends null for what its caller set to None."""
    request = parse(prompt="a star", n=None, size=None, seed=None, stream=None, sampler=None)
    assert request.num_images == 1


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "required"),
        ({"prompt": 5}, "prompt", "5 was given"),
        ({"prompt": "  "}, "prompt", "empty"),
        ({"prompt": "a\x00b"}, "prompt", "NUL"),
        ({"prompt": "a" * 4001}, "prompt", "4001 characters were given; at most 4000"),
        ({"prompt": "a", "negative_prompt": "a" * 4001}, "negative_prompt", "at most 4000"),
        ({"prompt": "a", "n": 0}, "n", "greater than or equal to 1"),
        ({"prompt": "a", "n": 11}, "n", "11 were given; at most 10"),
        ({"prompt": "a", "n": "3"}, "n", "valid integer"),
        ({"prompt": "a", "n": True}, "n", "valid integer"),
        ({"prompt": "a", "size": "big"}, "size", "WIDTHxHEIGHT"),
        ({"prompt": "a", "size": "130x128"}, "size", "multiples of 8 from 64 to 1024"),
        ({"prompt": "a", "size": "128x4096"}, "size", "a height of 4096"),
        ({"prompt": "a", "size": "0x128"}, "size", "a width of 0"),
        ({"prompt": "a", "size": "-64x64"}, "size", "WIDTHxHEIGHT"),
        ({"prompt": "a", "num_inference_steps": 101}, "num_inference_steps", "at most 100"),
        (
            {"prompt": "a", "sampler": "LCM", "num_inference_steps": 60},
            "num_inference_steps",
            "'LCM' at 60 steps",
        ),
        ({"prompt": "a", "sampler": "Elephant"}, "sampler", "known: DDIM"),
        ({"prompt": "a", "guidance_scale": -1}, "guidance_scale", "greater than or equal to 0"),
        ({"prompt": "a", "seed": -1}, "seed", "greater than or equal to 0"),
        ({"prompt": "a", "seed": 2**53}, "seed", "less than or equal to"),
        ({"prompt": "a", "output_format": "gif"}, "output_format", "'png', 'webp' or 'jpeg'"),
        ({"prompt": "a", "output_compression": 50}, "output_compression", "choose webp or jpeg"),
        ({"prompt": "a", "response_format": "url"}, "response_format", "'b64_json'"),
        ({"prompt": "a", "background": "transparent"}, "background", "'auto' or 'opaque'"),
        ({"prompt": "a", "partial_images": 2}, "partial_images", "stream"),
        ({"prompt": "a", "partial_images": 4, "stream": True}, "partial_images", "less than or equal to 3"),
        ({"prompt": "a", "deadline_s": 0}, "deadline_s", "greater than 0"),
        ({"prompt": "a", "deadline_s": 1e9}, "deadline_s", "at most 3600"),
        ({"prompt": "a", "priority": 9}, "priority", "less than or equal to 2"),
        ({"prompt": "a", "sise": "64x64"}, "sise", "nearest one is 'size'"),
        ({"prompt": "a", "style": "vivid"}, "style", "not offered"),
    ],
)
def test_a_refusal_names_the_field_and_what_is_allowed(body: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        parse(**body)
    assert refusal.value.param == param
    assert words in refusal.value.detail
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b"\xff", b'{"prompt": "\\ud800"}', b'{"prompt": "a", "seed": 1e999}']
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        read_body(body)


def test_eta_is_for_samplers_that_have_one() -> None:
    assert parse(prompt="a", sampler="DDIM", eta=0.501).eta == 0.5, "in hundredths"
    with pytest.raises(
        InvalidRequestError, match=r"eta: the sampler 'Euler' has none; .*: DDIM, "
    ) as refusal:
        parse(prompt="a", sampler="Euler", eta=0.5)
    assert refusal.value.param == "eta"
    with pytest.raises(InvalidRequestError, match=r"eta: .*less than or equal to 1"):
        parse(prompt="a", sampler="DDIM", eta=1.5)


def test_another_model_is_not_found() -> None:
    nobody = cast(Any, None)
    desk = FrontDesk({MODEL.id: MODEL}, nobody, nobody, nobody, nobody)
    assert desk.model("shapes", "model") is desk.model(None, "model") is MODEL
    with pytest.raises(ModelNotFoundError, match="model: 'dall-e-3' is not served here; 'shapes' is"):
        desk.model("dall-e-3", "model")


def test_of_several_models_one_is_to_be_named() -> None:
    nobody = cast(Any, None)
    desk = FrontDesk({"a": MODEL, "b": MODEL}, nobody, nobody, nobody, nobody)
    with pytest.raises(ModelNotFoundError, match="version: None is not served here; 'a', 'b' are"):
        desk.model(None, "version")


def test_the_last_images_seed_is_one_that_may_be_asked_for() -> None:
    assert parse(prompt="a", seed=MAX_SEED - 1, n=2).seed == MAX_SEED - 1
    with pytest.raises(InvalidRequestError, match=f"seed: {MAX_SEED} was given for 2 images") as refusal:
        parse(prompt="a", seed=MAX_SEED, n=2)
    assert refusal.value.param == "seed"


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(MidstepError) as refusal:
        parse(prompt="a", n=0, seed=-1)
    assert "n: " in refusal.value.detail
    assert "seed: " in refusal.value.detail
