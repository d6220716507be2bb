"""A model as it is served: the requests that it accepts, and their costs."""

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from deployments.engine.cost import CostModel
from deployments.engine.messages import ImageFormat
from deployments.engine.model_source import ModelInfo
from deployments.engine.sampler_table import SamplerTable
from deployments.engine.samplers import (
    SAMPLERS,
    SamplerTables,
    UnsupportedSamplerError,
    canonical_sampler,
    takes_eta,
)
from serve.capacity.estimator import Estimator
from serve.config.app import AppConfig
from serve.config.limits import DefaultsConfig, Limits
from serve.errors import InvalidRequestError
from serve.generation import GenerationRequest

logger = logging.getLogger("ray.serve")

MAX_SEED = 2**53 - 1  # the largest integer that every JSON reader keeps
_ETA_DIGITS = 2  # each value needs its own tables, which take a while to compile
MEDIA_TYPES = {"png": "image/png", "webp": "image/webp", "jpg": "image/jpeg", "jpeg": "image/jpeg"}
RANDOM_SEED = -1  # in other programs this means any seed


@dataclass(frozen=True, slots=True)
class Wanted:
    """A client's request, well-formed; None for fields that it left out.

    names: the dialect's names of fields that it calls differently, for answers
    """

    prompt: str
    model: str | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_start: float | None = None
    guidance_end: float | None = None
    sampler: str | None = None
    eta: float | None = None
    seed: int | None = None
    num_images: int | None = None
    deterministic: bool | None = None
    output_format: Literal["png", "webp", "jpeg", "jpg"] | None = None
    output_quality: int | None = None
    num_previews: int | None = None
    deadline_s: float | None = None
    priority: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def name(self, field: str) -> str:
        """The dialect's name of a field."""
        return self.names.get(field, field)

    def refusal(self, field: str, sentence: str) -> InvalidRequestError:
        """The error for a field whose value cannot be served."""
        name = self.name(field)
        return InvalidRequestError(f"{name}: {sentence}.", name)

    def check_at_most(self, field: str, given: float, limit: float, unit: str = "") -> None:
        """Raises InvalidRequestError if the value is above the limit."""
        if given > limit:
            raise self.refusal(field, f"{given}{unit} were given; at most {limit}{unit} are allowed")


@dataclass(frozen=True)
class ServedModel:
    """A model, its limits and its costs.

    id: the name in requests; aliases: further names
    shown_id: the name in pictures and jobs, which says if they are simulated
    device: as named in the configuration
    default_size: height and width in pixels
    known_cost: the present cost model; None before it is known
    """

    id: str
    shown_id: str
    device: str
    info: ModelInfo
    tables: SamplerTables
    default_size: tuple[int, int]
    defaults: DefaultsConfig
    limits: Limits
    estimator: Estimator
    known_cost: Callable[[], CostModel | None]
    aliases: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: AppConfig, info: ModelInfo, known_cost: Callable[[], CostModel | None]) -> Self:
        """The model of a configuration that fits it."""
        return cls(
            id=config.model.id,
            shown_id=config.model.shown_id,
            device=config.model.device,
            info=info,
            tables=SamplerTables(info.scheduler_config),
            default_size=config.default_size(info),
            defaults=config.defaults,
            limits=config.limits_for(info),
            estimator=Estimator(config.engine_config(info)),
            known_cost=known_cost,
            aliases=config.model.aliases,
        )

    def prepare(self) -> None:
        """Compiles the default sampler's table and imports torch and diffusers before the first request
        does."""
        try:
            self.tables.table(self.defaults.sampler, self.defaults.num_inference_steps)
        except UnsupportedSamplerError as error:
            logger.warning("requests that name no sampler are refused: %s", error)

    def accept(self, wanted: Wanted, request_id: str) -> GenerationRequest:
        """The accepted request. Compiles its sampler's table at the first use, which takes a while.

        Raises InvalidRequestError, which names the field as its dialect does.
        """
        self._check_texts(wanted)
        num_images = wanted.num_images or 1
        wanted.check_at_most("num_images", num_images, self.limits.max_num_images)
        if wanted.deadline_s is not None:
            wanted.check_at_most("deadline_s", wanted.deadline_s, self.limits.max_deadline_s)
        guidance_scale = wanted.guidance_scale
        guidance_start, guidance_end = _guidance_interval(wanted)
        height, width = self._size(wanted)
        eta = None if wanted.eta is None else round(wanted.eta, _ETA_DIGITS)
        sampler, num_inference_steps, table = self._sampler(wanted, eta)
        factor = self.info.scale_factor
        request = GenerationRequest(
            request_id=request_id,
            model=self.shown_id,
            prompt=wanted.prompt,
            negative_prompt=wanted.negative_prompt,
            height=height,
            width=width,
            latent_shape=(height // factor, width // factor),
            num_inference_steps=num_inference_steps,
            num_calls=table.num_calls,
            guidance_scale=self.defaults.guidance_scale if guidance_scale is None else guidance_scale,
            guidance_start=guidance_start,
            guidance_end=guidance_end,
            sampler=sampler,
            eta=eta,
            seed=_seed(wanted, num_images),
            num_images=num_images,
            deterministic=bool(wanted.deterministic),
            image_format=_image_format(wanted),
            num_previews=wanted.num_previews or 0,
            deadline=None if wanted.deadline_s is None else time.time() + wanted.deadline_s,
            priority=wanted.priority or 0,
        )
        return replace(request, work_s=self.work_s(request))

    def work_s(self, request: GenerationRequest) -> float | None:
        """Device-seconds of denoising an accepted request; None while costs are unknown."""
        if request.work_s is not None:
            return request.work_s
        cost = self.known_cost()
        return self.estimator.work_s(request, cost) if cost else None

    def _check_texts(self, wanted: Wanted) -> None:
        for name, text in (("prompt", wanted.prompt), ("negative_prompt", wanted.negative_prompt or "")):
            wanted.check_at_most(name, len(text), self.limits.max_prompt_length, " characters")
        if not wanted.prompt.strip():
            raise wanted.refusal("prompt", "is empty; say what the picture should show")

    def _size(self, wanted: Wanted) -> tuple[int, int]:
        """The request's height and width in pixels."""
        limits, factor = self.limits, self.info.scale_factor
        default_height, default_width = self.default_size
        width = default_width if wanted.width is None else wanted.width
        height = default_height if wanted.height is None else wanted.height
        for name, pixels, limit in (
            ("width", width, limits.max_width),
            ("height", height, limits.max_height),
        ):
            if not limits.min_size <= pixels <= limit or pixels % factor:
                raise wanted.refusal(
                    name,
                    f"a {name} of {pixels} was given; allowed are multiples of {factor} "
                    f"from {limits.min_size} to {limit}",
                )
        if width * height > limits.max_pixels:
            raise wanted.refusal(
                "width",
                f"{width}x{height} has {width * height} pixels; at most {limits.max_pixels} are allowed",
            )
        return height, width

    def _sampler(self, wanted: Wanted, eta: float | None) -> tuple[str, int, SamplerTable]:
        """The sampler's canonical name, the steps, and the table for both."""
        steps = wanted.num_inference_steps or self.defaults.num_inference_steps
        wanted.check_at_most("num_inference_steps", steps, self.limits.max_num_inference_steps)
        try:
            sampler = canonical_sampler(wanted.sampler or self.defaults.sampler)
        except UnsupportedSamplerError as error:
            raise wanted.refusal("sampler", str(error)) from error
        if eta is not None and not takes_eta(sampler):
            having = ", ".join(filter(takes_eta, SAMPLERS))
            raise wanted.refusal("eta", f"the sampler {sampler!r} has none; those that have one: {having}")
        try:
            return sampler, steps, self.tables.table(sampler, steps, eta)
        except UnsupportedSamplerError as error:
            raise wanted.refusal("num_inference_steps", str(error)) from error


def _seed(wanted: Wanted, num_images: int) -> int:
    """The first image's seed. The last image's seed is valid too."""
    if wanted.seed is None or wanted.seed == RANDOM_SEED:
        return secrets.randbelow(2**32)
    if wanted.seed + num_images - 1 > MAX_SEED:
        raise wanted.refusal(
            "seed",
            f"{wanted.seed} was given for {num_images} images, the last of which would have "
            f"{wanted.seed + num_images - 1}; at most {MAX_SEED} is allowed",
        )
    return wanted.seed


def _guidance_interval(wanted: Wanted) -> tuple[float, float]:
    """The start and the end of guidance, as fractions of the steps."""
    start = wanted.guidance_start or 0.0
    end = 1.0 if wanted.guidance_end is None else wanted.guidance_end
    if start >= end:
        raise wanted.refusal(
            "guidance_start",
            f"{start:g} was given, and {end:g} as {wanted.name('guidance_end')}; it must start before it "
            f"ends ({wanted.name('guidance_scale')} 1 turns guidance off)",
        )
    return start, end


def _image_format(wanted: Wanted) -> ImageFormat:
    output_format = wanted.output_format or "png"
    if output_format == "png" and wanted.output_quality not in (None, 100):
        raise wanted.refusal("output_quality", "PNG is lossless; choose webp or jpeg")
    return ImageFormat(MEDIA_TYPES[output_format], wanted.output_quality)


def shown(value: object) -> str:
    """A client's value, cut to fit into a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
