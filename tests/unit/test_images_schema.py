"""Bodies of the images dialect: an accepted one gives a valid request, others are refused in a sentence."""

import json
from dataclasses import replace
from typing import Any

import pytest

from deployments.engine.messages import ImageFormat
from deployments.engine.model_source import ModelInfo
from deployments.engine.prompt_text import AS_DIFFUSERS, Reading
from serve.config.app import AppConfig
from serve.config.limits import DefaultsConfig
from serve.errors import InvalidRequestError, MidstepError
from serve.generation import GenerationRequest
from serve.http.openai.schema import ImagesBody, hint_warnings, read_body, wanted_of
from serve.parameters import MAX_SEED
from serve.served_model import ServedModel

INFO = ModelInfo(
    scheduler_config={"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    scale_factor=8,
    default_height=128,
    default_width=128,
)
MODEL = ServedModel.of(AppConfig(), INFO, lambda: None)


def parse(**body: Any) -> GenerationRequest:
    return MODEL.accept(wanted_of(read_body(json.dumps(body).encode())), "id").request


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
    nothing: dict[str, Any] = dict.fromkeys(
        ("n", "num_images", "size", "width", "seed", "stream", "sampler", "moderation", "image", "lora")
    )
    assert parse(prompt="a star", **nothing).num_images == 1
    assert parse(prompt="a star", steps=None, num_inference_steps=5).num_inference_steps == 5


def test_other_programs_names_are_taken() -> None:
    request = parse(
        prompt="a star", negativePrompt="blue", steps=7, cfg=3, batch_size=2, sampler_name="k_euler_a"
    )
    assert (request.negative_prompt, request.num_inference_steps, request.guidance_scale) == ("blue", 7, 3.0)
    assert (request.num_images, request.sampler) == (2, "Euler a")
    assert parse(prompt="a star", num_steps=8, scheduler="DDIM", guidance=2).num_inference_steps == 8
    assert parse(prompt="a star", steps=7, num_inference_steps=7.0).num_inference_steps == 7, "the same twice"


def test_whole_numbers_are_integers_however_they_are_written() -> None:
    request = parse(prompt="a star", n=2.0, seed=7.0, num_inference_steps=4.0)
    assert (request.num_images, request.seed, request.num_inference_steps) == (2, 7, 4)
    assert isinstance(request.seed, int)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"width": 64, "height": 192}, (64, 192)),
        ({"width": 64}, (64, 128)),
        ({"height": 64, "size": "auto"}, (128, 64)),
        ({"width": 64, "height": 192, "size": "64x192"}, (64, 192)),
        ({"size": "256x256"}, (256, 256)),
    ],
)
def test_a_size_may_be_given_as_width_and_height(given: dict[str, Any], size: tuple[int, int]) -> None:
    request = parse(prompt="a star", **given)
    assert (request.width, request.height) == size


def test_minus_one_is_a_random_seed() -> None:
    seeds = {parse(prompt="a star", seed=-1).seed for _ in range(3)}
    assert len(seeds) == 3
    assert min(seeds) >= 0


def test_jpg_is_jpeg() -> None:
    assert parse(prompt="a star", output_format="jpg").image_format == ImageFormat("image/jpeg", None)


def hints(**body: Any) -> list[str]:
    return hint_warnings(read_body(json.dumps({"prompt": "a star"} | body).encode()))


@pytest.mark.parametrize(
    ("field", "asking", "idle"),
    [
        ("quality", ["low", "medium", "high", "xhigh", "max", "hd"], ["auto", "standard", None]),
        ("style", ["vivid", "natural"], [None]),
        ("moderation", ["low"], ["auto", None]),
        ("complexity", ["low", "medium", "high"], [None]),
        ("input_fidelity", ["low", "high"], [None]),
        ("background", [], ["auto", "opaque", None]),
        ("user", [], ["somebody", None]),
        ("safety_identifier", [], ["somebody", None]),
    ],
)
def test_hints_are_taken_and_warned_of_where_they_ask_for_something(
    field: str, asking: list[str], idle: list[str | None]
) -> None:
    for value in asking:
        [sentence] = hints(**{field: value})
        assert sentence.startswith(f"{field}: {value!r} changes nothing; ")
    for other in idle:
        assert hints(**{field: other}) == []


def test_a_stream_has_the_images_themselves() -> None:
    [sentence] = hints(response_format="url", stream=True)
    assert sentence.startswith("response_format: 'url' changes nothing in a stream")
    assert hints(response_format="url") == []


def test_the_schema_has_one_name_a_field_and_its_range() -> None:
    fields = ImagesBody.model_json_schema()["properties"]
    assert "steps" not in fields
    assert fields["num_inference_steps"]["anyOf"][0] == {"minimum": 1, "type": "integer"}


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
        ({"prompt": "a", "size": "130x128"}, "size", "multiples of 8 from 64 to 256"),
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
        ({"prompt": "a", "seed": -2}, "seed", "greater than or equal to -1"),
        ({"prompt": "a", "seed": 2**53}, "seed", "less than or equal to"),
        ({"prompt": "a", "output_format": "gif"}, "output_format", "'png', 'webp', 'jpeg' or 'jpg'"),
        ({"prompt": "a", "output_compression": 50}, "output_compression", "choose webp or jpeg"),
        ({"prompt": "a", "response_format": "png"}, "response_format", "'url' or 'b64_json'"),
        ({"prompt": "a", "background": "transparent"}, "background", "'auto' or 'opaque'"),
        ({"prompt": None}, "prompt", "required"),
        ({"prompt": "a", "unknown": None}, "unknown", "unknown field"),
        ({"prompt": "a", "n": 2.5}, "n", "valid integer"),
        ({"prompt": "a", "n": float("nan")}, "n", "valid integer, but nan was given"),
        ({"prompt": "a", "quality": "best"}, "quality", "'hd'"),
        ({"prompt": "a", "width": 0}, "width", "greater than or equal to 1"),
        ({"prompt": "a", "width": 130}, "width", "a width of 130 was given"),
        ({"prompt": "a", "size": "128x64", "height": 128}, "height", "128 was given, and size '128x64'"),
        ({"prompt": "a", "size": "64x130", "width": 64}, "size", "a height of 130"),
        ({"prompt": "a", "steps": 101}, "steps", "steps: 101 were given; at most 100"),
        ({"prompt": "a", "cfg_scale": -1}, "cfg_scale", "-1 was given"),
        ({"prompt": "a", "batch_size": 11}, "batch_size", "at most 10"),
        ({"prompt": "a", "sampler_name": "LMS"}, "sampler_name", "the nearest: PLMS"),
        (
            {"prompt": "a", "num_inference_steps": 6, "num_steps": 5},
            "num_steps",
            "num_steps: 5 was given, and 6 as num_inference_steps; the two are one field",
        ),
        (
            {"prompt": "a", "sampler_name": "Euler", "scheduler": "Karras"},
            "scheduler",
            "'Karras' was given, and 'Euler' as sampler_name",
        ),
        ({"prompt": "a", "image": "x"}, "image", "POST /v1/images/edits starts from a picture"),
        ({"prompt": "a", "lora": "x"}, "lora.0.id", "adapters are not offered here"),
        ({"prompt": "a", "lora_weights": "x"}, "lora_weights", "adapters are named by `loras`"),
        ({"prompt": "a", "lora": [{"id": "x", "scal": 1}]}, "lora.0.scal", "the nearest one is 'scale'"),
        ({"prompt": "a", "loras": [{"id": "x", "scale": -101}]}, "loras.0.scale", "or equal to -100"),
        ({"prompt": "a", "loras": [{"scale": 1}]}, "loras.0.id", "required"),
        ({"prompt": "a", "loras": [{"id": "x", "path": "y"}]}, "loras.0.path", "'x' as id"),
        ({"prompt": "a", "loras": [5]}, "loras.0", "object, but 5 was given"),
        ({"prompt": "a", "loras": "[{"}, "loras", "must be a list in JSON"),
        ({"prompt": "a", "loras": ["x"] * 65}, "loras", "at most 64 adapters"),
        ({"prompt": "a", "loras": ["x"] * 9}, "loras.0.id", "9 adapters were given; at most 8"),
        ({"prompt": "<lora:x:1>", "prompt_syntax": "a1111"}, "prompt", "adapters are not offered here"),
        ({"prompt": "<lora:x:big>", "prompt_syntax": "a1111"}, "prompt", "'big' is no number"),
        (
            {"prompt": "a", "negative_prompt": "<lora:x:1>", "prompt_syntax": "a1111"},
            "negative_prompt",
            "name them in the prompt and not in the negative one",
        ),
        ({"prompt": "a", "clip_skip": 99}, "clip_skip", "99 were given; at most"),
        ({"prompt": "a", "clip_skip": -1}, "clip_skip", "greater than or equal to 0"),
        ({"prompt": "a", "prompt_syntax": "comfy"}, "prompt_syntax", "'plain' or 'a1111'"),
        ({"prompt": "[a|b]", "prompt_syntax": "a1111"}, "prompt", "words that take turns are not offered"),
        (
            {"prompt": "a", "negative_prompt": "(b:11)", "prompt_syntax": "a1111"},
            "negative_prompt",
            "'b' has the weight 11; allowed are 0 to 10",
        ),
        ({"prompt": "a", "svg": {"model": "x"}}, "svg", "pictures of pixels"),
        ({"prompt": "a", "partial_images": 2}, "partial_images", "stream"),
        ({"prompt": "a", "partial_images": 4, "stream": True}, "partial_images", "less than or equal to 3"),
        ({"prompt": "a", "deadline_s": 0}, "deadline_s", "greater than 0"),
        ({"prompt": "a", "deadline_s": 1e9}, "deadline_s", "at most 3600"),
        ({"prompt": "a", "priority": 9}, "priority", "less than or equal to 2"),
        ({"prompt": "a", "sise": "64x64"}, "sise", "nearest one is 'size'"),
        ({"prompt": "a", "elephant": 1}, "elephant", "elephant: unknown field."),
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


def test_guidance_may_have_an_interval() -> None:
    request = parse(prompt="a", num_inference_steps=10, guidance_start=0.2, guidance_end=0.7)
    assert request.guided_calls == range(2, 7)
    assert request.rows_left() == 5 * 1 + 5 * 2
    assert parse(prompt="a", num_inference_steps=100, guidance_start=0.07).guided_calls == range(7, 100)
    assert not parse(prompt="a", guidance_scale=1, guidance_end=0.5).is_guided
    for wrong in ({"guidance_start": 0.5, "guidance_end": 0.5}, {"guidance_start": 1}, {"guidance_end": 0}):
        with pytest.raises(InvalidRequestError, match=r"guidance_start: .* before it ends"):
            parse(prompt="a", **wrong)
    with pytest.raises(InvalidRequestError, match=r"guidance_end: .*less than or equal to 1"):
        parse(prompt="a", guidance_end=1.1)


def test_the_last_images_seed_is_one_that_may_be_asked_for() -> None:
    assert parse(prompt="a", seed=MAX_SEED - 1, n=2).seed == MAX_SEED - 1
    with pytest.raises(InvalidRequestError, match=f"seed: {MAX_SEED} was given for 2 images") as refusal:
        parse(prompt="a", seed=MAX_SEED, n=2)
    assert refusal.value.param == "seed"


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(MidstepError) as refusal:
        parse(prompt="a", n=0, seed=-2)
    assert "n: " in refusal.value.detail
    assert "seed: " in refusal.value.detail


def test_how_texts_are_read() -> None:
    assert parse(prompt="a").reading == AS_DIFFUSERS
    given = parse(prompt="a", prompt_syntax="a1111", long_prompts="chunk", clip_skip=1)
    assert given.reading == Reading("a1111", max_chunks=3, clip_skip=1)
    assert parse(prompt="a", clip_skip=0).reading == AS_DIFFUSERS, "none is left out"
    defaults = DefaultsConfig(prompt_syntax="a1111", long_prompts="chunk", clip_skip=1)
    model = replace(MODEL, defaults=defaults)
    body = b'{"prompt": "a", "prompt_syntax": "plain", "long_prompts": "truncate", "clip_skip": 0}'
    for raw, expected in ((b'{"prompt": "(a:2)"}', given.reading), (body, AS_DIFFUSERS)):
        assert model.accept(wanted_of(read_body(raw)), "id").request.reading == expected


def test_a_default_negative_prompt_is_for_requests_without_one() -> None:
    model = replace(MODEL, defaults=DefaultsConfig(negative_prompt="a circle"))
    for raw, expected in ((b'{"prompt": "a"}', "a circle"), (b'{"prompt": "a", "negative_prompt": ""}', "")):
        assert model.accept(wanted_of(read_body(raw)), "id").request.negative_prompt == expected
    with pytest.raises(ValueError, match=r"negative_prompt: .* weight 99"):
        DefaultsConfig(negative_prompt="(a circle:99)", prompt_syntax="a1111")
