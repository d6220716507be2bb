"""The body of `POST /v1/images/generations`: OpenAI's fields, extensions that other image servers share, and
ours. Types and ranges here are fixed; `serve.served_model` checks what a configuration can change."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, Field

from deployments.engine.prompt_text import Syntax
from serve.errors import InvalidRequestError
from serve.http.body import Body, Text, Whole, parse_body
from serve.http.field_names import (
    GUIDANCE_SCALE,
    NEGATIVE_PROMPT,
    NOT_OFFERED,
    NUM_INFERENCE_STEPS,
    PICTURE_FIELDS,
)
from serve.http.hires import HiresBody, hires_of
from serve.http.loras import LORAS, Loras, lora_warnings, loras_of
from serve.parameters import MAX_SEED
from serve.wanted import LongPrompts, Wanted, shown

# Names of fields that OpenAI calls differently.
_RENAMED = {"num_images": "n", "output_quality": "output_compression", "num_previews": "partial_images"}
_STILL = "only still images are made"
_EDITS = "POST /v1/images/edits starts from a picture"
_ASKS_FOR_NOTHING = {"auto", "standard"}


class CommonBody(Body):
    """The fields of all requests for images. OpenAI's client sends null for what its caller set to None."""

    # Accepted fields without effect, unless they ask for what is done anyway.
    hints: ClassVar[Mapping[str, str]] = {
        "quality": "num_inference_steps is what sets the effort",
        "complexity": "num_inference_steps is what sets the effort",
        "style": "say it in the prompt",
        "moderation": "prompts are not moderated here",
        "input_fidelity": "there is no image to be true to",
    }
    not_offered: ClassVar[Mapping[str, str]] = (
        NOT_OFFERED
        | dict.fromkeys(PICTURE_FIELDS, _EDITS)
        | {
            "frame_count": _STILL,
            "frame_duration_ms": _STILL,
            "svg": "only pictures of pixels are made",
        }
    )

    prompt: Text
    model: str | None = None
    n: Annotated[int, Field(ge=1), Whole] | None = Field(
        None, validation_alias=AliasChoices("n", "num_images", "num_outputs", "batch_size")
    )
    size: str | None = None
    width: Annotated[int, Field(ge=1), Whole] | None = None
    height: Annotated[int, Field(ge=1), Whole] | None = None
    output_format: Literal["png", "webp", "jpeg", "jpg"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100), Whole] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3), Whole] | None = None

    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = None
    complexity: Literal["low", "medium", "high"] | None = None
    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["auto", "low"] | None = None
    input_fidelity: Literal["high", "low"] | None = None
    user: str | None = None
    safety_identifier: str | None = None

    negative_prompt: Text | None = Field(None, validation_alias=NEGATIVE_PROMPT)
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED), Whole] | None = None
    num_inference_steps: Annotated[int, Field(ge=1), Whole] | None = Field(
        None, validation_alias=NUM_INFERENCE_STEPS
    )
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, validation_alias=GUIDANCE_SCALE
    )
    guidance_start: Annotated[float, Field(ge=0, le=1)] | None = None
    guidance_end: Annotated[float, Field(ge=0, le=1)] | None = None
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] | None = None

    prompt_syntax: Syntax | None = None
    long_prompts: LongPrompts | None = None
    clip_skip: Annotated[int, Field(ge=0), Whole] | None = None
    loras: Loras | None = Field(None, validation_alias=LORAS)
    sampler: str | None = Field(None, validation_alias=AliasChoices("sampler", "sampler_name", "scheduler"))
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    deterministic: bool | None = None
    deadline_s: Annotated[float, Field(gt=0)] | None = None
    priority: Annotated[int, Field(ge=-2, le=2), Whole] | None = None


class ImagesBody(CommonBody):
    """A well-formed body of a request for images from a prompt alone."""

    hires: HiresBody | None = None


def read_body(raw: bytes) -> ImagesBody:
    """Parses a body. Raises InvalidRequestError, which names the field."""
    return parse_body(ImagesBody, raw)


def wanted_of(body: CommonBody) -> Wanted:
    """The body as a `Wanted`. Raises InvalidRequestError, which names the field."""
    if body.partial_images and not body.stream:
        raise InvalidRequestError('partial_images: needs "stream": true.', "partial_images")
    names = {field.name: body.written(_RENAMED.get(field.name, field.name)) for field in fields(Wanted)}
    width, height = _size(body.size)
    if body.size is not None and width is not None:
        names |= {"width": "size", "height": "size"}
    return Wanted(
        prompt=body.prompt,
        model=body.model,
        negative_prompt=body.negative_prompt,
        width=_one("width", body.width, width, body.size),
        height=_one("height", body.height, height, body.size),
        num_inference_steps=body.num_inference_steps,
        guidance_scale=body.guidance_scale,
        guidance_start=body.guidance_start,
        guidance_end=body.guidance_end,
        guidance_rescale=body.guidance_rescale,
        sampler=body.sampler,
        eta=body.eta,
        prompt_syntax=body.prompt_syntax,
        long_prompts=body.long_prompts,
        clip_skip=body.clip_skip,
        seed=body.seed,
        num_images=body.n,
        deterministic=body.deterministic,
        output_format=body.output_format,
        output_quality=body.output_compression,
        num_previews=body.partial_images,
        deadline_s=body.deadline_s,
        priority=body.priority,
        loras=loras_of(body.loras, body.written("loras")),
        hires=hires_of(body.hires) if isinstance(body, ImagesBody) else None,
        names=names,
    )


def hint_warnings(body: CommonBody) -> list[str]:
    """A sentence for each accepted field without effect."""
    sentences = [
        f"{field}: {shown(given)} changes nothing; {reason}."
        for field, reason in body.hints.items()
        if (given := getattr(body, field)) is not None and given not in _ASKS_FOR_NOTHING
    ]
    if body.stream and body.response_format == "url":
        sentences.append(
            "response_format: 'url' changes nothing in a stream, which has the images themselves."
        )
    loras = [one.model_dump() for one in body.loras or ()]
    return sentences + lora_warnings(loras, body.written("loras"))


def _one(name: str, given: int | None, in_size: int | None, size: str | None) -> int | None:
    """A side in pixels, which may be given alone and in the size. Raises InvalidRequestError."""
    if given is not None and in_size is not None and given != in_size:
        raise InvalidRequestError(f"{name}: {shown(given)} was given, and size {shown(size)}.", name)
    return in_size if given is None else given


def _size(size: str | None) -> tuple[int, int] | tuple[None, None]:
    """Width and height in pixels from "WIDTHxHEIGHT"."""
    if size in (None, "auto"):
        return None, None
    width, _, height = size.lower().partition("x")
    if not (_is_number(width) and _is_number(height)):
        raise InvalidRequestError(
            f'size: {shown(size)} is not "WIDTHxHEIGHT", such as "512x768", or "auto".', "size"
        )
    return int(width), int(height)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 6
