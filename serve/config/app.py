"""The configuration: the `args` of an application in Serve's YAML.

Every key has a default, so that `args: {}` serves the embedded model; unknown keys are errors that name the
nearest key there is.
"""

import math
from typing import Any

from pydantic import Field, model_validator

from deployments.engine.engine_config import EngineConfig
from deployments.engine.messages import LatentShape
from deployments.engine.models import ModelInfo
from deployments.engine.samplers import SamplerTables, UnsupportedSamplerError
from serve.config.api_keys import ApiKeys
from serve.config.http import HttpConfig
from serve.config.jobs import JobsConfig
from serve.config.limits import DefaultsConfig, LimitsConfig
from serve.config.model import ModelConfig
from serve.config.schema import ConfigError, Section, unknown_keys
from serve.config.stages import DecoderConfig, DenoiserConfig, DeviceStage, EncoderConfig, IngressConfig


class AppConfig(Section):
    """An application: one model, its stages and its limits."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    denoiser: DenoiserConfig = Field(default_factory=DenoiserConfig)
    decoder: DecoderConfig = Field(default_factory=DecoderConfig)
    ingress: IngressConfig = Field(default_factory=IngressConfig)
    defaults: DefaultsConfig = Field(default_factory=DefaultsConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    jobs: JobsConfig = Field(default_factory=JobsConfig)
    http: HttpConfig = Field(default_factory=HttpConfig)
    api_keys: ApiKeys = Field((), description="the keys that requests must come with; none: all may come")

    @property
    def stages(self) -> dict[str, DeviceStage]:
        """The stages that have a device, by their section's key."""
        return {"encoder": self.encoder, "denoiser": self.denoiser, "decoder": self.decoder}

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if unknown := list(unknown_keys(cls, data)):
            raise ValueError("; ".join(unknown))
        return data

    @model_validator(mode="after")
    def _check_gpus(self) -> "AppConfig":
        without = [name for name, stage in self.stages.items() if stage.num_gpus == 0]
        if self.model.device == "cuda" and without:
            raise ValueError(
                f"model.device: cuda needs a share of a GPU for each stage, else all would be on one; "
                f"set {', '.join(f'{name}.num_gpus' for name in without)}"
            )
        return self

    @model_validator(mode="after")
    def _check_drain(self) -> "AppConfig":
        drain_s, wait_s = self.ingress.drain_timeout_s, self.limits.max_wait_s
        if drain_s <= wait_s:
            raise ValueError(
                f"ingress.drain_timeout_s ({drain_s:g}) is not more than limits.max_wait_s ({wait_s:g}), so "
                "requests that were accepted would be cut off when a replica goes"
            )
        return self

    @model_validator(mode="after")
    def _check_defaults(self) -> "AppConfig":
        steps, most = self.defaults.num_inference_steps, self.limits.max_num_inference_steps
        if steps > most:
            raise ValueError(
                f"defaults.num_inference_steps ({steps}) is more than limits.max_num_inference_steps ({most})"
            )
        return self

    def check_for(self, info: ModelInfo) -> None:
        """Raises ConfigError for defaults that this model or the limits do not allow."""
        sizes = zip(
            ("height", "width"),
            self.default_size(info),
            (self.limits.max_height, self.limits.max_width),
            strict=True,
        )
        for name, pixels, limit in sizes:
            if pixels % info.scale_factor or not self.limits.min_size <= pixels <= limit:
                raise ConfigError(
                    f"defaults.{name}: {pixels} is not a multiple of {info.scale_factor} "
                    f"from limits.min_size ({self.limits.min_size}) to limits.max_{name} ({limit})"
                )
        for size in self.model.sizes:
            width, height = map(int, size.split("x"))
            if width % info.scale_factor or height % info.scale_factor:
                raise ConfigError(f"model.sizes: {size} is not of multiples of {info.scale_factor}")
            if width > self.limits.max_width or height > self.limits.max_height:
                raise ConfigError(
                    f"model.sizes: {size} is larger than limits.max_width ({self.limits.max_width}) "
                    f"and limits.max_height ({self.limits.max_height}) allow"
                )
        height, width = self.default_size(info)
        if height * width > self.limits.max_pixels:
            raise ConfigError(
                f"defaults: {width}x{height} has more pixels than limits.max_pixels "
                f"({self.limits.max_pixels})"
            )
        tables = SamplerTables(info.scheduler_config)
        try:
            tables.table(self.defaults.sampler, self.defaults.num_inference_steps)
        except UnsupportedSamplerError as error:
            raise ConfigError(f"defaults.sampler: {error}") from error

    def images_per_runner(self) -> int:
        """Images of jobs that a runner has under way at once: with all runners a quarter more than the
        denoisers take into their forwards, so that whoever scales them sees the queue."""
        if self.jobs.max_running_images != "auto":
            return self.jobs.max_running_images
        images = self.denoiser.autoscaling.max_replicas * self.denoiser.max_rows // 2
        return math.ceil(1.25 * images / self.jobs.num_runners)

    def engine_config(self, info: ModelInfo) -> EngineConfig:
        rows, row_counts = self.denoiser.rows_per_forward, self.denoiser.row_counts
        return EngineConfig(
            max_rows=self.denoiser.max_rows,
            rows_per_forward=None if rows == "auto" else rows,
            deterministic_rows=self.denoiser.deterministic_rows,
            latent_shape=self.latent_shapes(info)[0],
            row_counts=None if row_counts == "auto" else tuple(sorted(row_counts)),
            checkpoint_interval_s=self.denoiser.checkpoint_interval_s,
        )

    def latent_shapes(self, info: ModelInfo) -> tuple[LatentShape, ...]:
        """That are measured and warmed up: of the size that requests get by default, and of `model.sizes`."""
        sizes = [self.default_size(info)]
        for size in self.model.sizes:
            width, height = map(int, size.split("x"))
            sizes.append((height, width))
        factor = info.scale_factor
        return tuple(dict.fromkeys((height // factor, width // factor) for height, width in sizes))

    def default_size(self, info: ModelInfo) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.defaults.height or info.default_height, self.defaults.width or info.default_width
