"""The sections `encoder`, `denoiser`, `decoder` and `ingress` of the configuration."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from serve.config.autoscaling import AutoscalingOverrides
from serve.config.reservation import Reservation
from serve.config.schema import MAIN


def _as_min_replicas(given: dict[str, Any]) -> int:
    """The default of max_replicas. given: the valid fields before it"""
    return max(1, int(given.get("min_replicas", 1)))


class Stage(Reservation):
    """The keys of all stages."""

    min_replicas: NonNegativeInt = Field(
        1, description="Fewest replicas; 0 lets go of all when idle", json_schema_extra=MAIN
    )
    max_replicas: PositiveInt = Field(
        default_factory=_as_min_replicas,
        description="Most replicas; if not given as many as `min_replicas`, which scales nothing",
        json_schema_extra=MAIN | {"shown_default": "`min_replicas`"},
    )

    @model_validator(mode="after")
    def _check_order(self) -> "Stage":
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) is more than max_replicas ({self.max_replicas})"
            )
        return self


class DeviceStage(Stage):
    """The keys of stages that compute on a device."""

    autoscaling: AutoscalingOverrides = Field(
        default_factory=AutoscalingOverrides,
        description="Keys of `autoscaling` that are different for this stage",
        json_schema_extra={"shown_default": "`{}`"},
    )
    num_gpus: NonNegativeFloat | Literal["auto"] = Field(
        "auto",
        description="Share of a GPU that Ray reserves for a replica; `auto`: a denoiser on each GPU and the "
        "others beside one of them, nothing without CUDA",
        json_schema_extra=MAIN,
    )
    num_threads: PositiveInt = Field(1, description="Threads of torch in a replica")
    max_models: PositiveInt = Field(
        4, description="Most models of a catalog whose weights a replica holds on its device at once"
    )


class EncoderConfig(DeviceStage):
    """The prompt encoding stage."""


class DenoiserConfig(DeviceStage):
    """The denoising stage."""

    num_threads: PositiveInt = Field(2, description="Threads of torch in a replica")
    max_rows: Annotated[int, Field(ge=2)] | Literal["auto"] = Field(
        "auto",
        description="Most U-Net rows in a forward (guidance takes two per image); `auto`: 32, and 16 for "
        "models larger than 768x768. Below 8 it changes the bytes of deterministic images",
        json_schema_extra=MAIN,
    )
    rows_per_forward: Annotated[int, Field(ge=2)] | Literal["auto"] = Field(
        "auto", description="Row cap; `auto`: the measured count past which more rows stop paying"
    )
    batch_wait_timeout_s: NonNegativeFloat = Field(
        0.005,
        description="Seconds that an image waits for others to be admitted with it",
        json_schema_extra=MAIN,
    )
    max_ongoing_requests: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Most images that a replica has at once, ordered by deadline; more wait outside in order "
        "of arrival for the replica that is free first; `auto`: twice `max_rows`",
    )

    host_gib: NonNegativeFloat = Field(
        16.0,
        description="Memory of the host in GiB for models of a catalog that are not on the GPU at the moment",
    )

    @model_validator(mode="after")
    def _check_rows(self) -> "DenoiserConfig":
        if self.max_rows != "auto":
            self.check_row_cap(self.max_rows)
        return self

    def check_row_cap(self, max_rows: int) -> None:
        """Raises ValueError if the row cap is above the largest forward."""
        if self.rows_per_forward != "auto" and self.rows_per_forward > max_rows:
            raise ValueError(f"rows_per_forward ({self.rows_per_forward}) is more than max_rows ({max_rows})")


class DecoderConfig(DeviceStage):
    """The decoding stage."""

    max_batch_size: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Most images of a batch; `auto`: 4, and on CUDA no more of a size than `num_gpus` of the "
        "GPU's memory has room for",
    )


class IngressConfig(Stage):
    """The HTTP stage."""

    drain_timeout_s: PositiveFloat | Literal["auto"] = Field(
        "auto",
        description="Seconds that a replica which is to go has to answer its requests; `auto`: "
        "`limits.max_wait_s` and what the longest request takes, or ten minutes before that is known",
    )
