"""The configuration: the `args` of an application in Serve's YAML.

Every key has a default, so `args: {}` serves the embedded model. Unknown keys are errors that name the
nearest known key. The methods here decide what a key leaves open (`auto`).
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from deployments.batching import Batching
from deployments.engine.engine_config import EngineConfig
from deployments.engine.messages import LatentShape
from deployments.engine.model_source import ModelInfo, Placement
from deployments.engine.samplers import SamplerTables, UnsupportedSamplerError, canonical_sampler
from serve.config.adapters import AdaptersConfig
from serve.config.api_keys import ApiKeys
from serve.config.autoscaling import Autoscaling, AutoscalingConfig
from serve.config.catalog import CatalogConfig
from serve.config.http import HttpConfig
from serve.config.internal import INGRESS_TARGET_ONGOING_REQUESTS, InternalConfig
from serve.config.jobs import JobsConfig
from serve.config.limits import DefaultsConfig, Limits, LimitsConfig
from serve.config.model import ModelConfig
from serve.config.old_keys import OLD_KEYS
from serve.config.schema import HIDDEN, MAIN, ConfigError, Section, expanded, unknown_keys
from serve.config.shares import gpu_shares
from serve.config.stages import (
    DecoderConfig,
    DenoiserConfig,
    DeviceStage,
    EncoderConfig,
    IngressConfig,
    Stage,
)

_ROWS, _LARGE_MODEL_ROWS = 32, 16
_LARGE_MODEL_PIXELS = 768 * 768
_DETERMINISTIC_ROWS = 8
_ADMITTED_TOGETHER = 8
_IMAGES = 4


class AppConfig(Section):
    """An application: its models, stages and limits."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    catalog: CatalogConfig = Field(default_factory=CatalogConfig)
    adapters: AdaptersConfig = Field(default_factory=AdaptersConfig)
    autoscaling: AutoscalingConfig = Field(default_factory=AutoscalingConfig)
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    denoiser: DenoiserConfig = Field(default_factory=DenoiserConfig)
    decoder: DecoderConfig = Field(default_factory=DecoderConfig)
    ingress: IngressConfig = Field(default_factory=IngressConfig)
    defaults: DefaultsConfig = Field(default_factory=DefaultsConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    jobs: JobsConfig = Field(default_factory=JobsConfig)
    http: HttpConfig = Field(default_factory=HttpConfig)
    api_keys: ApiKeys = Field(
        (), description="Keys that requests must come with; `[]`: none is needed", json_schema_extra=MAIN
    )
    internal: InternalConfig = Field(default_factory=InternalConfig, json_schema_extra=HIDDEN)

    @property
    def stages(self) -> dict[str, DeviceStage]:
        """The stages that use a device, by their section's key."""
        return {"encoder": self.encoder, "denoiser": self.denoiser, "decoder": self.decoder}

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if unknown := list(unknown_keys(cls, data, old_keys=OLD_KEYS)):
            raise ValueError("; ".join(unknown))
        return data

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if problem := self._gpus_problem():
            raise ValueError(problem)
        return self

    def _gpus_problem(self) -> str | None:
        without = [f"{name}.num_gpus" for name, share in self.num_gpus().items() if share == 0]
        if self.model.device != "cuda" or not without:
            return None
        return (
            "model.device: cuda needs a share of a GPU for each stage, else all would be on one; "
            f"{', '.join(without)} must not be 0"
        )

    @property
    def reserves_gpus(self) -> bool:
        """Whether a stage's `num_gpus` is a share of a GPU, and not worked out."""
        return any(stage.num_gpus not in ("auto", 0) for stage in self.stages.values())

    def on_device(self, device: Literal["cpu", "cuda"]) -> Self:
        """The configuration with another device. Raises ConfigError if a stage would have no share of it."""
        changed = self.model_copy(update={"model": self.model.model_copy(update={"device": device})})
        if problem := changed._gpus_problem():
            raise ConfigError(f"{problem}. model.device: cpu needs none")
        return changed

    @model_validator(mode="after")
    def _check_autoscaling(self) -> Self:
        for name in self.stages:
            try:
                self.autoscaling_of(name).check()
            except ConfigError as error:
                raise ValueError(f"{name}.{error}") from error
        return self

    @model_validator(mode="after")
    def _check_drain(self) -> Self:
        drain_s, wait_s = self.ingress.drain_timeout_s, self.limits.max_wait_s
        if drain_s != "auto" and drain_s <= wait_s:
            raise ValueError(
                f"ingress.drain_timeout_s ({drain_s:g}) is not more than limits.max_wait_s ({wait_s:g}), so "
                "requests that were accepted would be cut off when a replica goes"
            )
        return self

    @model_validator(mode="after")
    def _check_defaults(self) -> Self:
        steps, most = self.defaults.num_inference_steps, self.limits.max_num_inference_steps
        if steps > most:
            raise ValueError(
                f"defaults.num_inference_steps ({steps}) is more than limits.max_num_inference_steps ({most})"
            )
        return self

    def check_for(self, info: ModelInfo) -> None:
        """Raises ConfigError if this model or the limits do not allow the defaults or the stages."""
        self.check_defaults_for(info)
        limits = self.limits_for(info)
        for size in self.model.sizes:
            width, height = map(int, size.split("x"))
            if width % info.scale_factor or height % info.scale_factor:
                raise ConfigError(f"model.sizes: {size} is not of multiples of {info.scale_factor}")
            if width > limits.max_width or height > limits.max_height:
                raise ConfigError(
                    f"model.sizes: {size} is larger than limits.max_width ({limits.max_width}) "
                    f"and limits.max_height ({limits.max_height}) allow"
                )
        try:
            self.denoiser.check_row_cap(self.max_rows(info))
        except ValueError as error:
            raise ConfigError(f"denoiser.rows_per_forward: {error}") from error

    def check_defaults_for(self, info: ModelInfo) -> None:
        """Raises ConfigError if this model or the limits do not allow the defaults."""
        limits, steps = self.limits_for(info), self.defaults.num_inference_steps
        sizes = zip(
            ("height", "width"), self.default_size(info), (limits.max_height, limits.max_width), strict=True
        )
        for name, pixels, limit in sizes:
            if pixels % info.scale_factor or not limits.min_size <= pixels <= limit:
                raise ConfigError(
                    f"defaults.{name}: {pixels} is not a multiple of {info.scale_factor} "
                    f"from {limits.min_size} to limits.max_{name} ({limit})"
                )
        height, width = self.default_size(info)
        if height * width > limits.max_pixels:
            raise ConfigError(
                f"defaults: {width}x{height} has more pixels than limits.max_pixels ({limits.max_pixels})"
            )
        if steps > limits.max_num_inference_steps:
            raise ConfigError(
                f"defaults.num_inference_steps: {steps} is more than limits.max_num_inference_steps "
                f"({limits.max_num_inference_steps})"
            )
        if (self.defaults.clip_skip or 0) > info.max_clip_skip:
            raise ConfigError(
                f"defaults.clip_skip: {self.defaults.clip_skip} is more than this model's text encoder can "
                f"leave out ({info.max_clip_skip})"
            )
        self._check_sampler(info)

    def with_defaults(self, defaults: DefaultsConfig) -> Self:
        """The configuration with other defaults, for another model of the catalog."""
        return self.model_copy(update={"defaults": defaults})

    def _check_sampler(self, info: ModelInfo) -> None:
        """Raises ConfigError if the default sampler does not work with the model."""
        sampler, num_inference_steps = self.defaults.sampler, self.defaults.num_inference_steps
        shipped = DefaultsConfig()
        try:
            canonical_sampler(sampler)
            # The shipped defaults suit all served models; checking others would import torch.
            if (sampler, num_inference_steps) != (shipped.sampler, shipped.num_inference_steps):
                SamplerTables(info.scheduler_config).table(sampler, num_inference_steps)
        except UnsupportedSamplerError as error:
            raise ConfigError(f"defaults.sampler: {error}") from error

    def placement(self) -> Placement:
        """The model's placement. Raises ConfigError if the data folder is impossible."""
        cache = expanded("jobs.data_folder", self.jobs.data_folder).absolute() / "compiled"
        model = self.model
        return Placement(
            model.device,
            model.dtype,
            model.attention,
            str(cache) if model.compile else None,
            quantization=model.quantization,
        )

    def autoscaling_of(self, stage: str) -> Autoscaling:
        """The scaling of a stage, from `autoscaling` and the stage's overrides."""
        section: Stage = self.ingress
        if stage == "ingress":
            by_requests = {"policy": "requests", "target_ongoing_requests": INGRESS_TARGET_ONGOING_REQUESTS}
            common = self.autoscaling.model_copy(update=by_requests)
        else:
            section = self.stages[stage]
            common = self.stages[stage].autoscaling.applied_to(self.autoscaling)
        return Autoscaling(
            **common.model_dump(),
            min_replicas=section.min_replicas,
            max_replicas=section.max_replicas,
            metrics_interval_s=self.internal.metrics_interval_s,
            look_back_period_s=self.internal.look_back_period_s,
            upscale_delay_s=self.internal.upscale_delay_s,
        )

    def max_models(self, stage: str) -> int:
        """The most models that a replica of a stage holds: only a catalog has more than one."""
        return self.stages[stage].max_models if self.catalog.folder else 1

    def num_gpus(self) -> Mapping[str, float]:
        """The share of a GPU that a replica of each stage reserves."""
        worked_out = gpu_shares(self.encoder.max_replicas, self.decoder.max_replicas)
        if self.model.device != "cuda":
            worked_out = dict.fromkeys(worked_out, 0.0)
        return {
            name: worked_out[name] if stage.num_gpus == "auto" else stage.num_gpus
            for name, stage in self.stages.items()
        }

    def memory_shares(self) -> Mapping[str, float]:
        """The share of a GPU's memory that is for a replica of each stage, also where it reserves no GPU."""
        worked_out = gpu_shares(self.encoder.max_replicas, self.decoder.max_replicas)
        return {name: min(1.0, share or worked_out[name]) for name, share in self.num_gpus().items()}

    def decoding_share(self) -> float | None:
        """The share of a GPU's memory that limits a decoder's batches; None if `max_batch_size` does."""
        return self.memory_shares()["decoder"] if self.decoder.max_batch_size == "auto" else None

    @property
    def max_decoded_images(self) -> int:
        """The most images in a call of a decoder, however much memory its device has."""
        return _IMAGES if self.decoder.max_batch_size == "auto" else self.decoder.max_batch_size

    @property
    def text_batching(self) -> Batching:
        """How the encoder collects a batch."""
        return Batching(self.internal.encoder_max_batch_size, self.internal.batch_wait_timeout_s)

    def admission_batching(self, info: ModelInfo) -> Batching:
        """How the denoiser collects images that it admits."""
        together = min(_ADMITTED_TOGETHER, self.max_ongoing_requests("denoiser", info))
        return Batching(together, self.denoiser.batch_wait_timeout_s)

    def max_ongoing_requests(self, stage: str, info: ModelInfo) -> int:
        """Most requests of a replica of a stage at once; more wait outside."""
        if stage == "ingress":  # including those that follow a job
            return max(2048, 2 * self.limits.max_queue)
        if stage == "denoiser":
            images = self.denoiser.max_ongoing_requests
            return 2 * self.max_rows(info) if images == "auto" else images
        most = self.internal.encoder_max_batch_size if stage == "encoder" else self.max_decoded_images
        return max(32, 4 * most)

    def max_rows(self, info: ModelInfo) -> int:
        """The most U-Net rows in a forward."""
        if self.denoiser.max_rows != "auto":
            return self.denoiser.max_rows
        is_large = info.default_height * info.default_width > _LARGE_MODEL_PIXELS
        return _LARGE_MODEL_ROWS if is_large else _ROWS

    def images_per_runner(self, info: ModelInfo) -> int:
        """Images of jobs that a runner works on at once. All runners together have a quarter more than the
        denoisers take into their forwards, so that autoscaling sees the queue."""
        if self.jobs.max_running_images != "auto":
            return self.jobs.max_running_images
        images = self.denoiser.max_replicas * self.max_rows(info) // 2
        return math.ceil(1.25 * images / self.jobs.num_runners)

    def engine_config(self, info: ModelInfo) -> EngineConfig:
        rows, max_rows = self.denoiser.rows_per_forward, self.max_rows(info)
        usual, *others = self.latent_shapes(info)
        return EngineConfig(
            max_rows=max_rows,
            rows_per_forward=None if rows == "auto" else rows,
            deterministic_rows=min(_DETERMINISTIC_ROWS, max_rows),
            latent_shape=usual,
            row_counts=None,
            checkpoint_interval_s=self.internal.checkpoint_interval_s,
            max_rank=self.adapters.engine_max_rank,
            other_shapes=tuple(others),
        )

    def limits_for(self, info: ModelInfo) -> Limits:
        return self.limits.for_model(info.default_height, info.default_width)

    def latent_shapes(self, info: ModelInfo) -> tuple[LatentShape, ...]:
        """Shapes to measure and warm up: the default size and `model.sizes`."""
        sizes = [self.default_size(info)]
        for size in self.model.sizes:
            width, height = map(int, size.split("x"))
            sizes.append((height, width))
        factor = info.scale_factor
        return tuple(dict.fromkeys((height // factor, width // factor) for height, width in sizes))

    def largest_shape(self, info: ModelInfo) -> LatentShape:
        """The latents of the largest image that the limits allow, as square as they allow."""
        limits, factor = self.limits_for(info), info.scale_factor
        height = min(limits.max_height, math.isqrt(limits.max_pixels))
        width = min(limits.max_width, limits.max_pixels // height)
        height = min(limits.max_height, limits.max_pixels // width)
        return max(1, height // factor), max(1, width // factor)

    def default_size(self, info: ModelInfo) -> tuple[int, int]:
        """Default height and width in pixels."""
        return self.defaults.height or info.default_height, self.defaults.width or info.default_width
