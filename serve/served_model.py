"""A model as it is served: the requests that it accepts, and their costs."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from deployments.engine.cost import CostModel
from deployments.engine.messages import Picture, steps_from_picture
from deployments.engine.model_source import ModelInfo, ModelRef, ModelSource
from deployments.engine.samplers import (
    SAMPLERS,
    SamplerTables,
    UnsupportedSamplerError,
    canonical_sampler,
    keeps_zero_snr,
    takes_eta,
)
from serve.adapters import Adapters, Resolved
from serve.capacity.estimator import Estimator
from serve.catalog_model import CatalogModel, family_of, size_bytes_of
from serve.config.adapters import AdaptersConfig
from serve.config.app import AppConfig
from serve.config.catalog import effective_defaults
from serve.config.limits import DefaultsConfig, Limits
from serve.generation import GenerationRequest, HiresPass, StartPicture
from serve.parameters import guidance_interval, image_format_of, seed_of, strength_of
from serve.sizes import Sizes
from serve.start_pictures import OpenedPicture, crop_of, open_picture
from serve.texts import adapters_of, check_texts, reading_of, syntax_of
from serve.wanted import Wanted, WantedAdapter

logger = logging.getLogger("ray.serve")

_ETA_DIGITS = 2  # each value needs its own tables, which take a while to compile
_HIRES_STRENGTH = 0.6  # enough to draw what enlarging blurs
_NONE_OFFERED = Adapters(AdaptersConfig())


@dataclass(frozen=True, slots=True)
class Accepted:
    """picture: what the request starts from if it has a `start`"""

    request: GenerationRequest
    picture: Picture | None


@dataclass(frozen=True)
class ServedModel:
    """A model, its limits and its costs.

    id: the name in requests; aliases: further names
    shown_id: the name in pictures and jobs, which says if they are simulated
    device: as named in the configuration
    source: the model's files; adapters: those that requests can name
    default_size: height and width in pixels
    known_cost: the present cost model; None before it is known
    family: as serve.catalog_model.family_of says it; size_bytes: of its files; None if they are not here
    ref, pool: as in GenerationRequest
    """

    id: str
    shown_id: str
    device: str
    source: ModelSource
    info: ModelInfo
    tables: SamplerTables
    default_size: tuple[int, int]
    defaults: DefaultsConfig
    limits: Limits
    estimator: Estimator
    known_cost: Callable[[], CostModel | None]
    aliases: tuple[str, ...] = ()
    family: str = ""
    size_bytes: int | None = None
    ref: ModelRef | None = None
    pool: str | None = None
    adapters: Adapters = _NONE_OFFERED

    @classmethod
    def of(cls, config: AppConfig, info: ModelInfo, known_cost: Callable[[], CostModel | None]) -> Self:
        """The model of a configuration that fits it."""
        source = config.model.source()
        return replace(
            cls._of(config, info, known_cost),
            family=family_of(source, info),
            size_bytes=size_bytes_of(Path(source.path)) if source.is_folder else None,
        )

    @classmethod
    def _of(cls, config: AppConfig, info: ModelInfo, known_cost: Callable[[], CostModel | None]) -> Self:
        return cls(
            id=config.model.id,
            shown_id=config.model.shown_id,
            device=config.model.device,
            source=config.model.source(),
            info=info,
            tables=SamplerTables(info.scheduler_config),
            default_size=config.default_size(info),
            defaults=config.defaults,
            limits=config.limits_for(info),
            estimator=Estimator(config.engine_config(info)),
            known_cost=known_cost,
            aliases=config.model.aliases,
        )

    @classmethod
    def of_catalog(
        cls, config: AppConfig, model: CatalogModel, known_cost: Callable[[], CostModel | None]
    ) -> Self:
        """A model of the application's catalog."""
        defaults = effective_defaults(config.defaults, model.entry.defaults)
        served = cls._of(config.with_defaults(defaults), model.info, known_cost)
        name = config.model.model_copy(update={"id": model.entry.id}).shown_id
        return replace(
            served,
            id=model.entry.id,
            shown_id=name,
            source=model.ref.source,
            aliases=model.entry.aliases,
            ref=model.ref,
            pool=config.model.shown_id,
            family=model.family,
            size_bytes=model.size_bytes,
        )

    @property
    def _sizes(self) -> Sizes:
        return Sizes(self.limits, self.default_size, self.info.scale_factor)

    def prepare(self) -> None:
        """Compiles the default sampler's table and imports torch and diffusers before the first request
        does."""
        try:
            self.tables.table(self.defaults.sampler, self.defaults.num_inference_steps)
        except UnsupportedSamplerError as error:
            logger.warning("requests that name no sampler are refused: %s", error)

    def check(self, wanted: Wanted) -> None:
        """Refuses what can be refused without the picture. Raises InvalidRequestError like `accept`."""
        check_texts(wanted, self.limits)
        wanted.check_at_most("num_images", wanted.num_images or 1, self.limits.max_num_images)
        if wanted.deadline_s is not None:
            wanted.check_at_most("deadline_s", wanted.deadline_s, self.limits.max_deadline_s)
        guidance_interval(wanted)
        self._sampler(wanted, wanted.eta)
        self.adapters.check(self.named_adapters(wanted))

    def named_adapters(self, wanted: Wanted) -> Sequence[WantedAdapter]:
        """The adapters that a request names, in its prompt too. Raises InvalidRequestError."""
        return adapters_of(wanted, syntax_of(wanted, self.defaults))

    def resolve(self, wanted: Wanted) -> Resolved:
        """A request's adapters, as Adapters.resolve. It takes a while, for files that are new."""
        return self.adapters.resolve(self.named_adapters(wanted), self.source)

    def accept(self, wanted: Wanted, request_id: str, adapters: Resolved | None = None) -> Accepted:
        """The accepted request. Its sampler's table, at the first use, and its picture take a while.

        adapters: as `resolve` gives them; None if it is to be called
        Raises InvalidRequestError, which names the field as its dialect does.
        """
        self.check(wanted := self._with_negative_prompt(wanted))
        self._check_picture_fields(wanted)
        reading = reading_of(wanted, self.defaults, self.limits, self.info)
        adapters = self.resolve(wanted) if adapters is None else adapters
        guidance_start, guidance_end = guidance_interval(wanted)
        eta = None if wanted.eta is None else round(wanted.eta, _ETA_DIGITS)
        sampler, num_inference_steps = self._sampler(wanted, eta)
        opened = None if wanted.image is None else open_picture(wanted, self.limits)
        strength = None if opened is None else strength_of(wanted, opened, num_inference_steps)
        height, width = self._sizes.of(wanted, opened)
        start, picture = self._fitted(wanted, opened, height, width)
        request = GenerationRequest(
            request_id=request_id,
            model=self.shown_id,
            prompt=wanted.prompt,
            negative_prompt=wanted.negative_prompt,
            height=height,
            width=width,
            latent_shape=self._sizes.latent_shape(height, width),
            num_inference_steps=num_inference_steps,
            num_calls=self._num_calls(wanted, sampler, num_inference_steps, eta, strength),
            guidance_scale=self._guidance_scale(wanted),
            guidance_start=guidance_start,
            guidance_end=guidance_end,
            guidance_rescale=wanted.guidance_rescale or 0.0,
            sampler=sampler,
            eta=eta,
            seed=seed_of(wanted),
            num_images=wanted.num_images or 1,
            deterministic=bool(wanted.deterministic),
            image_format=image_format_of(wanted),
            num_previews=wanted.num_previews or 0,
            deadline=wanted.deadline,
            priority=wanted.priority or 0,
            reading=reading,
            adapters=adapters.unet,
            text_adapters=adapters.text,
            strength=strength,
            start=start,
            ref=self.ref,
            pool=self.pool,
            warnings=self._warnings(sampler),
        )
        request = replace(request, hires=self._hires(wanted, request))
        return Accepted(replace(request, work_s=self.work_s(request)), picture)

    def _with_negative_prompt(self, wanted: Wanted) -> Wanted:
        if wanted.negative_prompt is not None:
            return wanted
        return replace(wanted, negative_prompt=self.defaults.negative_prompt)

    def _guidance_scale(self, wanted: Wanted) -> float:
        return self.defaults.guidance_scale if wanted.guidance_scale is None else wanted.guidance_scale

    def _fitted(
        self, wanted: Wanted, opened: OpenedPicture | None, height: int, width: int
    ) -> tuple[StartPicture | None, Picture | None]:
        """The picture to start from, in the request's size."""
        if opened is None:
            return None, None
        self._check_mask(wanted, opened)
        return opened.fitted(height, width, crop_of(wanted, opened, height, width), wanted)

    def work_s(self, request: GenerationRequest) -> float | None:
        """Device-seconds of denoising an accepted request; None while costs are unknown."""
        if request.work_s is not None:
            return request.work_s
        cost = self.known_cost()
        return self.estimator.work_s(request, cost) if cost else None

    def _check_picture_fields(self, wanted: Wanted) -> None:
        """Fields that only mean something beside a picture, or beside none."""
        if wanted.image is None:
            if self.info.needs_mask:
                raise wanted.refusal(
                    "image",
                    "is required; this model only repaints pictures where a mask says so "
                    "(POST /v1/images/edits, or image and mask in a prediction)",
                )
            for field in ("mask", "strength", "padding_mask_crop", "preserve_unmasked"):
                if getattr(wanted, field) is not None:
                    raise wanted.refusal(field, f"it needs {wanted.name('image')}, the picture to start from")
        elif wanted.hires is not None:
            raise wanted.refusal(
                "hires", "only images from a prompt alone get a second pass; ask for a larger size"
            )

    def _check_mask(self, wanted: Wanted, opened: OpenedPicture) -> None:
        if opened.mask is None and self.info.needs_mask:
            raise wanted.refusal("mask", "is required; this model repaints a picture where a mask says so")
        if opened.mask is None and wanted.preserve_unmasked:
            raise wanted.refusal("preserve_unmasked", "it needs a mask")

    def _sampler(self, wanted: Wanted, eta: float | None) -> tuple[str, int]:
        """The sampler's canonical name, and the steps."""
        steps = wanted.num_inference_steps or self.defaults.num_inference_steps
        wanted.check_at_most("num_inference_steps", steps, self.limits.max_num_inference_steps)
        try:
            sampler = canonical_sampler(wanted.sampler or self.defaults.sampler)
        except UnsupportedSamplerError as error:
            raise wanted.refusal("sampler", str(error)) from error
        if eta is not None and not takes_eta(sampler):
            having = ", ".join(filter(takes_eta, SAMPLERS))
            raise wanted.refusal("eta", f"the sampler {sampler!r} has none; those that have one: {having}")
        return sampler, steps

    def _warnings(self, sampler: str) -> tuple[str, ...]:
        if not self.info.scheduler_config.get("rescale_betas_zero_snr") or keeps_zero_snr(sampler):
            return ()
        keeping = ", ".join(filter(keeps_zero_snr, SAMPLERS))
        return (
            f"sampler: {sampler!r} ignores, as in diffusers, that this model was trained for zero terminal "
            f"SNR, so its pictures may be of medium brightness; those that keep to it: {keeping}.",
        )

    def _num_calls(
        self,
        wanted: Wanted,
        sampler: str,
        steps: int,
        eta: float | None,
        strength: float | None,
        field: str = "num_inference_steps",
    ) -> int:
        """Model calls of a pass. Compiles its table. field: which is at fault if there is none"""
        try:
            return self.tables.table(sampler, steps, eta, strength=strength).num_calls
        except UnsupportedSamplerError as error:
            raise wanted.refusal(field, str(error)) from error

    def _hires(self, wanted: Wanted, first: GenerationRequest) -> HiresPass | None:
        """The second pass of a request."""
        if (asked := wanted.hires) is None:
            return None
        factor = self.info.scale_factor
        scale = 1.5 if asked.scale is None else asked.scale
        height, width = (round(side * scale / factor) * factor for side in (first.height, first.width))
        self._sizes.check(wanted, ("hires", "hires"), height, width)
        steps = asked.num_inference_steps or first.num_inference_steps
        strength = _HIRES_STRENGTH if asked.strength is None else asked.strength
        if (done := steps_from_picture(steps, strength)) < 1:
            raise wanted.refusal("hires", f"strength {strength:g} of {steps} steps leaves no step")
        most = self.limits.max_num_inference_steps
        if steps > most or first.num_steps + done > most:
            raise wanted.refusal(
                "hires",
                f"{steps} steps were given, {done} of them to do after the first pass's {first.num_steps}; "
                f"at most {most} are allowed, together too",
            )
        return HiresPass(
            upscaler=asked.upscaler or "lanczos",
            scale=scale,
            height=height,
            width=width,
            latent_shape=self._sizes.latent_shape(height, width),
            strength=strength,
            num_inference_steps=steps,
            num_calls=self._num_calls(wanted, first.sampler, steps, first.eta, strength, "hires"),
        )
