"""The sections `encoder`, `denoiser`, `decoder` and `ingress` of the configuration."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from deployments.batching import Batching
from serve.config.autoscaling import AutoscalingSection, WorkAutoscalingSection
from serve.config.schema import Section


class Stage(Section):
    """What all stages have."""

    num_cpus: NonNegativeFloat = Field(0.25, description="CPUs that Ray reserves for a replica")
    resources: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="what Ray reserves besides, of what its nodes say they have"
    )
    max_ongoing_requests: PositiveInt = Field(
        32, description="requests that a replica has at once; more wait outside"
    )
    drain_timeout_s: PositiveFloat = Field(
        120,
        description="seconds that a replica which is to go has to finish what it has; then another does "
        "that anew",
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


class DeviceStage(Stage):
    """What the stages have that compute on a device."""

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
    def _check_room(self) -> "DeviceStage":
        if self.max_ongoing_requests < self.max_batch_size:
            raise ValueError(
                f"max_ongoing_requests ({self.max_ongoing_requests}) is less than max_batch_size "
                f"({self.max_batch_size}), so no batch could ever be full"
            )
        return self


class EncoderConfig(DeviceStage):
    """The prompt encoding stage."""

    cache_size: PositiveInt = Field(256, description="texts whose embeddings are kept")


class DenoiserConfig(DeviceStage):
    """The denoising stage. Its max_batch_size gathers admissions; the engine batches steps."""

    num_threads: PositiveInt = Field(2, description="torch's threads in a replica")
    max_ongoing_requests: PositiveInt = Field(
        64,
        description="images that a replica has at once: the engine orders them by deadline; what is past it "
        "waits in order of arrival for whichever replica is free first",
    )
    drain_timeout_s: PositiveFloat = Field(
        120,
        description="seconds that a replica which is to go has to finish what it has; then another goes on "
        "with that, from its last checkpoint",
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
        router = {"request_router_class": "serve.calls.routing:LeastWorkRouter"}
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


class DecoderConfig(DeviceStage):
    """The decoding stage."""

    max_batch_size: PositiveInt = Field(4, description="most items of a batch")
    max_hold_s: PositiveFloat = Field(
        0.2, description="seconds; batches that would hold the device for longer are decoded in parts"
    )


class IngressConfig(Stage):
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
