"""The configuration: the `args` of an application in Serve's YAML.

Every key has a default, so that `args: {}` serves the embedded model; unknown keys are errors that name the
nearest key there is.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from deployments.batching import Batching
from deployments.cost_measurement import CostMeasurement
from deployments.engine.cost import CostModel
from deployments.engine.denoising import EngineConfig
from deployments.engine.messages import LatentShape
from deployments.engine.models import ModelInfo, ModelSource, Placement
from deployments.engine.samplers import SamplerTables, UnsupportedSamplerError
from serve.api_keys import ApiKeys
from serve.autoscaling_config import AutoscalingSection, WorkAutoscalingSection
from serve.jobs.config import JobsConfig
from serve.section import ConfigError, Section, unknown_keys

PROJECT_FOLDER = Path(__file__).parents[1]


Size = Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")]  # WIDTHxHEIGHT in pixels


def _project_path(path: str) -> Path:
    """A relative path is looked for where the process runs and then in the project."""
    return Path(path).absolute() if Path(path).exists() else PROJECT_FOLDER / path


class CostModelFile(Section):
    """What `midstep profile` writes. path, dtype: the model's; device: for people."""

    path: str
    dtype: str
    device: str
    cost_model: CostModel


class ModelConfig(Section):
    """What is served."""

    id: str = Field("shapes", min_length=1, description="the name that clients use")
    path: str = Field("models/shapes", description="a folder in diffusers format, or a hub id")
    revision: str | None = Field(None, description="a hub revision")
    variant: str | None = Field(None, description="a weight variant, for example `fp16`")
    device: Literal["auto", "cpu", "cuda", "simulated"] = Field(
        "auto",
        description="`auto` takes CUDA where there is one; `simulated` makes grey pictures in the time that "
        "`model.cost_model` says",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="what the model computes in"
    )
    attention: Literal["sdpa", "xformers"] = Field("sdpa", description="the attention implementation")
    compile: bool = Field(False, description="`torch.compile` the U-Net: starts slower, runs faster")
    compile_cache: str = Field("build/compile", description="a folder that keeps what was compiled")
    sizes: tuple[Size, ...] = Field(
        (), description="sizes like `512x768` that are warmed up and measured at start, beside the default"
    )
    cost_model: str | None = Field(
        None, description="a file of `midstep profile`, so that nothing is measured at start"
    )

    @model_validator(mode="after")
    def _check_device(self) -> "ModelConfig":
        if self.device == "simulated" and self.cost_model is None:
            raise ValueError("device: simulated needs cost_model, a file of `midstep profile`")
        return self

    @property
    def shown_id(self) -> str:
        """For what people look at."""
        return f"{self.id} (simulated device)" if self.device == "simulated" else self.id

    def source(self) -> ModelSource:
        """A relative path is looked for where the process runs and in the project; else it is a hub id."""
        folder = _project_path(self.path)
        if (folder / "model_index.json").exists():
            return ModelSource(str(folder), self.revision, self.variant)
        if self.path.startswith((".", "/", "~")):
            raise ConfigError(
                f"model.path: {self.path!r} is no folder in diffusers format (it has no model_index.json)"
            )
        return ModelSource(self.path, self.revision, self.variant)

    def placement(self) -> Placement:
        cache = str(Path(self.compile_cache).absolute()) if self.compile else None
        return Placement(self.device, self.dtype, self.attention, cache)

    def known_cost(self) -> CostModel | None:
        """Raises ConfigError for a file that cannot be read."""
        file = self.cost_file()
        return file.cost_model if file else None

    def cost_file(self) -> CostModelFile | None:
        """Likewise, with what was measured."""
        if self.cost_model is None:
            return None
        try:
            file = CostModelFile.model_validate_json(_project_path(self.cost_model).read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigError(
                f"model.cost_model: {self.cost_model!r} is no file of `midstep profile`: {error}"
            ) from error
        if self.device != "simulated" and (file.path, file.dtype) != (self.path, self.dtype):
            raise ConfigError(
                f"model.cost_model: {self.cost_model!r} was measured with {file.path!r} in {file.dtype}, "
                f"and {self.path!r} in {self.dtype} is to be served"
            )
        return file


class _Stage(Section):
    num_cpus: NonNegativeFloat = Field(0.25, description="CPUs that Ray reserves for a replica")
    resources: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="what Ray reserves besides, of what its nodes say they have"
    )
    max_ongoing_requests: PositiveInt = Field(
        32, description="requests that a replica has at once; more wait outside"
    )
    drain_timeout_s: PositiveFloat = Field(
        120,
        description="seconds that a replica which is to go has to finish what it has; then it goes on "
        "elsewhere, from its last checkpoint",
    )
    max_surge_percent: Annotated[int, Field(ge=0, le=100)] = Field(
        0, description="replicas more than there should be while new ones take over from old ones"
    )
    autoscaling: AutoscalingSection = Field(
        default_factory=AutoscalingSection, description="how many replicas"
    )

    def deployment_options(self) -> dict[str, Any]:
        """For `Deployment.options`."""
        return {
            "ray_actor_options": {"num_cpus": self.num_cpus, "resources": dict(self.resources)},
            "max_ongoing_requests": self.max_ongoing_requests,
            "graceful_shutdown_timeout_s": self.drain_timeout_s,
            "max_surge_percent": self.max_surge_percent,
            "autoscaling_config": self.autoscaling.autoscaling_config(),
        }


class _DeviceStage(_Stage):
    num_gpus: NonNegativeFloat = Field(0, description="share of a GPU that Ray reserves for a replica")
    num_threads: PositiveInt = Field(1, description="torch's threads in a replica")
    max_batch_size: PositiveInt = Field(8, description="most items of a batch")
    batch_wait_timeout_s: NonNegativeFloat = Field(0.005, description="longest wait of a batch's first item")
    autoscaling: WorkAutoscalingSection = Field(
        default_factory=WorkAutoscalingSection, description="how many replicas"
    )

    def deployment_options(self) -> dict[str, Any]:
        options = super().deployment_options()
        options["ray_actor_options"]["num_gpus"] = self.num_gpus
        return options

    def batching(self) -> Batching:
        return Batching(self.max_batch_size, self.batch_wait_timeout_s)

    @model_validator(mode="after")
    def _check_room(self) -> "_DeviceStage":
        if self.max_ongoing_requests < self.max_batch_size:
            raise ValueError(
                f"max_ongoing_requests ({self.max_ongoing_requests}) is less than max_batch_size "
                f"({self.max_batch_size}), so no batch could ever be full"
            )
        return self


class EncoderConfig(_DeviceStage):
    """The prompt encoding stage."""

    cache_size: PositiveInt = Field(256, description="texts whose embeddings are kept")


class DenoiserConfig(_DeviceStage):
    """The denoising stage. Its max_batch_size gathers admissions; the engine batches steps."""

    num_threads: PositiveInt = Field(2, description="torch's threads in a replica")
    max_ongoing_requests: PositiveInt = Field(
        64,
        description="images that a replica has at once: the engine orders them by deadline; what is past it "
        "waits in order of arrival for whichever replica is free first",
    )
    max_rows: PositiveInt = Field(
        32, description="most U-Net rows in a forward (guidance takes two per image)"
    )
    rows_per_forward: PositiveInt | Literal["auto"] = Field(
        "auto", description="the row cap; `auto` measures where more rows stop paying"
    )
    row_counts: tuple[PositiveInt, ...] | Literal["auto"] = Field(
        "auto",
        description="row counts that forwards are padded to; `auto`: a few on CUDA, where each is captured "
        "as a graph; elsewhere none are padded",
    )
    deterministic_rows: Annotated[int, Field(ge=2)] = Field(
        8, description="rows of every deterministic forward; changing it changes the bytes of images"
    )
    checkpoint_interval_s: PositiveFloat = Field(
        2.0,
        description="seconds between an image's checkpoints: what it loses when its replica dies",
    )

    def deployment_options(self) -> dict[str, Any]:
        router = {"request_router_class": "serve.routing:LeastWorkRouter"}
        return super().deployment_options() | {"request_router_config": router}

    @model_validator(mode="after")
    def _check_rows(self) -> "DenoiserConfig":
        if isinstance(self.rows_per_forward, int) and not 2 <= self.rows_per_forward <= self.max_rows:
            raise ValueError(
                f"rows_per_forward ({self.rows_per_forward}) is not within 2 and max_rows ({self.max_rows})"
            )
        if self.deterministic_rows > self.max_rows:
            raise ValueError(
                f"deterministic_rows ({self.deterministic_rows}) is more than max_rows ({self.max_rows})"
            )
        if self.row_counts != "auto" and self.row_counts and sorted(self.row_counts)[-1] < self.max_rows:
            raise ValueError(
                f"row_counts: the largest ({max(self.row_counts)}) is less than max_rows ({self.max_rows})"
            )
        return self


class DecoderConfig(_DeviceStage):
    """The decoding stage."""

    max_batch_size: PositiveInt = Field(4, description="most items of a batch")
    max_hold_s: PositiveFloat = Field(
        0.2, description="seconds; batches that would hold the device for longer are decoded in parts"
    )


class IngressConfig(_Stage):
    """The HTTP stage."""

    max_ongoing_requests: PositiveInt = Field(
        2048, description="HTTP requests that a replica has at once, those that follow a job included"
    )
    drain_timeout_s: PositiveFloat = Field(
        120,
        description="seconds that a replica which is to go has to answer its requests, as its connections go "
        "with it: `limits.max_wait_s` and what the longest one takes",
    )
    max_surge_percent: Annotated[int, Field(ge=0, le=100)] = Field(
        100, description="replicas more than there should be while new ones take over from old ones"
    )


class DefaultsConfig(Section):
    """What a request that does not say gets."""

    width: PositiveInt | None = Field(None, description="pixels; the model's own size if not set")
    height: PositiveInt | None = Field(None, description="pixels; the model's own size if not set")
    sampler: str = Field("DPM++ 2M", description="see Samplers")
    num_inference_steps: PositiveInt = Field(20, description="denoising steps")
    guidance_scale: NonNegativeFloat = Field(5.0, description="classifier-free guidance; 1 and less is none")


class LimitsConfig(Section):
    """What a request may ask for."""

    min_size: PositiveInt = Field(64, description="pixels, each way")
    max_width: PositiveInt = Field(1024, description="pixels")
    max_height: PositiveInt = Field(1024, description="pixels")
    max_pixels: PositiveInt = Field(1024 * 1024, description="width times height")
    max_num_inference_steps: PositiveInt = Field(100, description="denoising steps")
    max_num_images: Annotated[int, Field(ge=1, le=10)] = Field(10, description="images of a request (`n`)")
    max_prompt_length: Annotated[int, Field(ge=1, le=32000)] = Field(
        4000, description="characters, of either prompt"
    )
    max_queue: PositiveInt = Field(
        64, description="images that an ingress replica has accepted and not finished"
    )
    max_wait_s: PositiveFloat = Field(
        60,
        description="seconds of work for each denoiser, accepted and not finished, past which requests are "
        "refused; jobs under way count, those that wait do not",
    )
    max_deadline_s: PositiveFloat = Field(3600, description="seconds, the largest `deadline_s`")

    @model_validator(mode="after")
    def _check_queue(self) -> "LimitsConfig":
        if self.max_queue < self.max_num_images:
            raise ValueError(
                f"max_queue ({self.max_queue}) is less than max_num_images ({self.max_num_images}), "
                "so the largest request could never be accepted"
            )
        return self


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
    api_keys: ApiKeys = Field((), description="the keys that requests must come with; none: all may come")

    @property
    def stages(self) -> dict[str, _DeviceStage]:
        """Those that have a device, by their section's key."""
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
        """Of jobs, under way at once: with all runners a quarter more than the denoisers take into their
        forwards, so that whoever scales them sees the queue."""
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

    def cost_measurement(self, info: ModelInfo) -> CostMeasurement:
        """Raises ConfigError for a cost model file that cannot be read."""
        return CostMeasurement(self.latent_shapes(info), self.model.known_cost())

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
        return self.defaults.height or info.default_size, self.defaults.width or info.default_size
