"""From what a client asks for, in whatever dialect, to a request that this model can serve."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from deployments.engine.messages import ImageFormat
from deployments.engine.models import ModelInfo
from deployments.engine.samplers import SamplerTables, UnsupportedSamplerError, canonical_sampler
from serve.config.app import AppConfig
from serve.errors import InvalidRequestError, ModelNotFoundError
from serve.generation import GenerationRequest

MAX_SEED = 2**53 - 1  # the largest integer that every JSON reader keeps
MEDIA_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client says, well-formed; None where it does not.

    names: what its dialect calls fields that are called otherwise here, for the answers
    """

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    seed: int | None = None
    num_images: int | None = None
    deterministic: bool | None = None
    output_format: Literal["png", "webp", "jpeg"] | None = None
    output_quality: int | None = None
    num_previews: int | None = None
    deadline_s: float | None = None
    priority: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)


class Acceptance:
    """The limits and the model that requests are held against."""

    def __init__(self, config: AppConfig, info: ModelInfo, tables: SamplerTables) -> None:
        self._config = config
        self._info = info
        self._tables = tables

    def check_model(self, model: str | None, field: str) -> None:
        """Raises ModelNotFoundError for another model than the one that is served."""
        if model not in (None, self._config.model.id):
            raise ModelNotFoundError(
                f"{field}: {shown(model)} is not served here; {self._config.model.id!r} is.", field
            )

    def accept(self, wanted: Wanted, request_id: str) -> GenerationRequest:
        """Raises InvalidRequestError, which names the field as its dialect does."""
        limits, defaults = self._config.limits, self._config.defaults
        steps = wanted.num_inference_steps or defaults.num_inference_steps
        num_images = wanted.num_images or 1
        _at_most(wanted, "num_images", num_images, limits.max_num_images)
        _at_most(wanted, "num_inference_steps", steps, limits.max_num_inference_steps)
        for name, text in (("prompt", wanted.prompt), ("negative_prompt", wanted.negative_prompt or "")):
            _at_most(wanted, name, len(text), limits.max_prompt_length, " characters")
        if not wanted.prompt.strip():
            raise _refusal(wanted, "prompt", "is empty; say what the picture should show")
        if wanted.deadline_s is not None:
            _at_most(wanted, "deadline_s", wanted.deadline_s, limits.max_deadline_s)
        output_format = wanted.output_format or "png"
        if output_format == "png" and wanted.output_quality not in (None, 100):
            raise _refusal(wanted, "output_quality", "PNG is lossless; choose webp or jpeg")
        height, width = self._size(wanted)
        return GenerationRequest(
            request_id=request_id,
            prompt=wanted.prompt,
            negative_prompt=wanted.negative_prompt,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=defaults.guidance_scale
            if wanted.guidance_scale is None
            else wanted.guidance_scale,
            sampler=self._sampler(wanted, steps),
            seed=secrets.randbelow(2**32) if wanted.seed is None else wanted.seed,
            num_images=num_images,
            deterministic=bool(wanted.deterministic),
            image_format=ImageFormat(MEDIA_TYPES[output_format], wanted.output_quality),
            num_previews=wanted.num_previews or 0,
            deadline=None if wanted.deadline_s is None else time.time() + wanted.deadline_s,
            priority=wanted.priority or 0,
        )

    def _size(self, wanted: Wanted) -> tuple[int, int]:
        """Height and width in pixels."""
        limits, factor = self._config.limits, self._info.scale_factor
        default_height, default_width = self._config.default_size(self._info)
        width = default_width if wanted.width is None else wanted.width
        height = default_height if wanted.height is None else wanted.height
        for name, pixels, limit in (
            ("width", width, limits.max_width),
            ("height", height, limits.max_height),
        ):
            if not limits.min_size <= pixels <= limit or pixels % factor:
                raise _refusal(
                    wanted,
                    name,
                    f"a {name} of {pixels} was given; allowed are multiples of {factor} "
                    f"from {limits.min_size} to {limit}",
                )
        if width * height > limits.max_pixels:
            raise _refusal(
                wanted,
                "width",
                f"{width}x{height} has {width * height} pixels; at most {limits.max_pixels} are allowed",
            )
        return height, width

    def _sampler(self, wanted: Wanted, steps: int) -> str:
        try:
            sampler = canonical_sampler(wanted.sampler or self._config.defaults.sampler)
        except UnsupportedSamplerError as error:
            raise _refusal(wanted, "sampler", str(error)) from error
        try:
            self._tables.table(sampler, steps)
        except UnsupportedSamplerError as error:
            raise _refusal(wanted, "num_inference_steps", str(error)) from error
        return sampler


def shown(value: object) -> str:
    """A client's value, cut to what fits into a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refusal(wanted: Wanted, field: str, sentence: str) -> InvalidRequestError:
    name = wanted.names.get(field, field)
    return InvalidRequestError(f"{name}: {sentence}.", name)


def _at_most(wanted: Wanted, field: str, given: float, limit: float, unit: str = "") -> None:
    if given > limit:
        raise _refusal(wanted, field, f"{given}{unit} were given; at most {limit}{unit} are allowed")
