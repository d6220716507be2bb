"""The body of `POST /v1/images/generations`: OpenAI's fields, the extensions that other image servers share,
ours.

`ImagesBody` has the types and ranges that no configuration changes; `accept` the limits and the model.
"""

import secrets
import time
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from deployments.engine.messages import ImageFormat
from deployments.engine.models import ModelInfo
from deployments.engine.samplers import SamplerTables, UnsupportedSamplerError, canonical_sampler
from serve.config import AppConfig, unknown_keys
from serve.errors import InvalidRequestError, ModelNotFoundError
from serve.generation import GenerationRequest

MAX_SEED = 2**53 - 1  # the largest integer that every JSON reader keeps
MAX_PROBLEMS = 5  # told in one answer; a body may hold a hundred thousand
MEDIA_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}


def _printable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain the NUL character")
    return text


Text = Annotated[str, AfterValidator(_printable)]


class ImagesBody(BaseModel):
    """A body that is well-formed. The OpenAI client sends null for a field that its caller set to None."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

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
    deterministic: bool | None = None
    deadline_s: Annotated[float, Field(gt=0)] | None = None
    priority: Annotated[int, Field(ge=-2, le=2)] | None = None


# Fields of OpenAI's that mean something this server does not do: said so rather than ignored.
_NOT_OFFERED = {
    "style": "styles are not offered; say it in the prompt",
    "moderation": "prompts are not moderated here",
    "frame_count": "only still images are made",
}


def read_body(body: bytes) -> ImagesBody:
    """Raises InvalidRequestError, which names the first field at fault and tells of more."""
    try:
        return ImagesBody.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    messages = [_sentence(problem) for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        messages.append(f"and {len(problems) - MAX_PROBLEMS} problems more")
    location = problems[0]["loc"]
    raise InvalidRequestError("; ".join(messages) + ".", str(location[0]) if location else None)


def _sentence(problem: Any) -> str:
    if not problem["loc"]:
        if problem["type"] == "json_invalid":
            return f"The body is not JSON: {problem['ctx']['error']}"
        return f"The body is not a JSON object but {_shown(problem['input'])}"
    field = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        if field in _NOT_OFFERED:
            return f"{field}: {_NOT_OFFERED[field]}"
        return next(unknown_keys(ImagesBody, {field[:64]: None})).replace("unknown key", "unknown field")
    if problem["type"] == "missing":
        return f"{field}: is required"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{field}: {message[0].lower()}{message[1:]}, but {_shown(problem['input'])} was given"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def accept(
    body: ImagesBody, request_id: str, config: AppConfig, info: ModelInfo, tables: SamplerTables
) -> GenerationRequest:
    """A request that this model can serve. Raises InvalidRequestError and ModelNotFoundError."""
    limits, defaults = config.limits, config.defaults
    if body.model not in (None, config.model.id):
        raise ModelNotFoundError(
            f"model: {_shown(body.model)} is not served here; {config.model.id!r} is.", "model"
        )
    num_images = body.n or 1
    _at_most("n", num_images, limits.max_num_images)
    steps = body.num_inference_steps or defaults.num_inference_steps
    _at_most("num_inference_steps", steps, limits.max_num_inference_steps)
    for field, text in (("prompt", body.prompt), ("negative_prompt", body.negative_prompt or "")):
        _at_most(field, len(text), limits.max_prompt_length, " characters")
    if not body.prompt.strip():
        raise InvalidRequestError("prompt: is empty; say what the picture should show.", "prompt")
    if body.partial_images and not body.stream:
        raise InvalidRequestError('partial_images: needs "stream": true.', "partial_images")
    if body.deadline_s is not None:
        _at_most("deadline_s", body.deadline_s, limits.max_deadline_s)
    height, width = _size(body.size, config, info)
    output_format = body.output_format or "png"
    if output_format == "png" and body.output_compression not in (None, 100):
        raise InvalidRequestError(
            "output_compression: PNG is lossless; choose webp or jpeg.", "output_compression"
        )
    return GenerationRequest(
        request_id=request_id,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=defaults.guidance_scale if body.guidance_scale is None else body.guidance_scale,
        sampler=_sampler(body.sampler or defaults.sampler, steps, tables),
        seed=secrets.randbelow(2**32) if body.seed is None else body.seed,
        num_images=num_images,
        deterministic=bool(body.deterministic),
        image_format=ImageFormat(MEDIA_TYPES[output_format], body.output_compression),
        num_previews=body.partial_images or 0,
        deadline=None if body.deadline_s is None else time.time() + body.deadline_s,
        priority=body.priority or 0,
    )


def _at_most(field: str, given: float, limit: float, unit: str = "") -> None:
    if given > limit:
        raise InvalidRequestError(
            f"{field}: {given}{unit} were given; at most {limit}{unit} are allowed.", field
        )


def _size(size: str | None, config: AppConfig, info: ModelInfo) -> tuple[int, int]:
    """Height and width in pixels from "WIDTHxHEIGHT"."""
    limits = config.limits
    if size in (None, "auto"):
        return config.default_size(info)
    width_text, _, height_text = size.lower().partition("x")
    if not (_is_number(width_text) and _is_number(height_text)):
        raise InvalidRequestError(
            f'size: {_shown(size)} is not "WIDTHxHEIGHT", such as "512x768", or "auto".', "size"
        )
    width, height = int(width_text), int(height_text)
    for name, pixels, limit in (("width", width, limits.max_width), ("height", height, limits.max_height)):
        if not limits.min_size <= pixels <= limit or pixels % info.scale_factor:
            raise InvalidRequestError(
                f"size: a {name} of {pixels} was given; allowed are multiples of {info.scale_factor} "
                f"from {limits.min_size} to {limit}.",
                "size",
            )
    if width * height > limits.max_pixels:
        raise InvalidRequestError(
            f"size: {width}x{height} has {width * height} pixels; at most {limits.max_pixels} are allowed.",
            "size",
        )
    return height, width


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 6


def _sampler(name: str, steps: int, tables: SamplerTables) -> str:
    try:
        sampler = canonical_sampler(name)
    except UnsupportedSamplerError as error:
        raise InvalidRequestError(f"sampler: {error}.", "sampler") from error
    try:
        tables.table(sampler, steps)
    except UnsupportedSamplerError as error:
        raise InvalidRequestError(f"num_inference_steps: {error}.", "num_inference_steps") from error
    return sampler
