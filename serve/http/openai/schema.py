"""The body of `POST /v1/images/generations`: OpenAI's fields, the extensions that other image servers share,
ours. What it has in types and ranges no configuration changes; the rest is `serve.served_model`'s."""

from typing import Annotated, Literal

from pydantic import Field

from serve.errors import InvalidRequestError
from serve.http.body import Body, Text, parse_body
from serve.served_model import MAX_SEED, Wanted, shown

# What OpenAI calls fields that are called otherwise here.
_NAMES = {
    "num_images": "n",
    "width": "size",
    "height": "size",
    "output_quality": "output_compression",
    "num_previews": "partial_images",
}
# Fields of OpenAI's that mean something this server does not do: said so rather than ignored.
_NOT_OFFERED = {
    "style": "styles are not offered; say it in the prompt",
    "moderation": "prompts are not moderated here",
    "frame_count": "only still images are made",
}


class ImagesBody(Body):
    """A body that is well-formed. The OpenAI client sends null for a field that its caller set to None."""

    prompt: Text
    model: str | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    size: str | None = None
    output_format: Literal["png", "webp", "jpeg"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    response_format: Literal["b64_json"] | None = None
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None

    negative_prompt: Text | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None

    sampler: str | None = None
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    deterministic: bool | None = None
    deadline_s: Annotated[float, Field(gt=0)] | None = None
    priority: Annotated[int, Field(ge=-2, le=2)] | None = None


def read_body(raw: bytes) -> ImagesBody:
    """Raises InvalidRequestError, which names the field."""
    return parse_body(ImagesBody, raw, _NOT_OFFERED)


def wanted_of(body: ImagesBody) -> Wanted:
    """Raises InvalidRequestError, which names the field."""
    if body.partial_images and not body.stream:
        raise InvalidRequestError('partial_images: needs "stream": true.', "partial_images")
    width, height = _size(body.size)
    return Wanted(
        prompt=body.prompt,
        model=body.model,
        negative_prompt=body.negative_prompt,
        width=width,
        height=height,
        num_inference_steps=body.num_inference_steps,
        guidance_scale=body.guidance_scale,
        sampler=body.sampler,
        eta=body.eta,
        seed=body.seed,
        num_images=body.n,
        deterministic=body.deterministic,
        output_format=body.output_format,
        output_quality=body.output_compression,
        num_previews=body.partial_images,
        deadline_s=body.deadline_s,
        priority=body.priority,
        names=_NAMES,
    )


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
