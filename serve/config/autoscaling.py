"""The section `autoscaling` of the configuration, and its result for each stage."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from serve.config.schema import ConfigError, Section

Policy = Literal["work", "requests"]
Share = Annotated[float, Field(gt=0, le=1)]


class AutoscalingConfig(Section):
    """How the number of replicas follows the load, for all stages with a variable number."""

    policy: Policy = Field(
        "work",
        description="`work`: by device-seconds that arrive and wait; `requests`: Serve's own, by requests. "
        "The ingress is always scaled by requests",
    )
    utilization: Share = Field(
        0.7, description="Largest share of its time that a device should be busy (`work`)"
    )
    drain_s: PositiveFloat = Field(60, description="Seconds within which waiting work is to be done (`work`)")
    cold_start_s: NonNegativeFloat = Field(30, description="Seconds until a new replica works (`work`)")
    downscale_delay_s: NonNegativeFloat = Field(
        300, description="Seconds for which the load must be low before replicas go"
    )
    target_ongoing_requests: PositiveFloat = Field(8, description="Requests per replica (`requests`)")


class AutoscalingOverrides(Section):
    """A stage's values in place of those in the section `autoscaling`."""

    policy: Policy | None = None
    utilization: Share | None = None
    drain_s: PositiveFloat | None = None
    cold_start_s: NonNegativeFloat | None = None
    downscale_delay_s: NonNegativeFloat | None = None
    target_ongoing_requests: PositiveFloat | None = None

    def applied_to(self, common: AutoscalingConfig) -> AutoscalingConfig:
        return common.model_copy(update=self.model_dump(exclude_none=True))


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """The scaling of a stage, with everything decided."""

    min_replicas: int
    max_replicas: int
    policy: Policy
    utilization: float
    drain_s: float
    cold_start_s: float
    downscale_delay_s: float
    target_ongoing_requests: float
    metrics_interval_s: float
    look_back_period_s: float
    upscale_delay_s: float

    @property
    def is_on(self) -> bool:
        """Whether the number of replicas may change."""
        return self.min_replicas < self.max_replicas

    def check(self) -> None:
        """Raises ConfigError if new replicas would come too late to help."""
        if self.policy == "work" and self.cold_start_s >= self.drain_s:
            raise ConfigError(
                f"autoscaling.cold_start_s ({self.cold_start_s:g}) is not less than drain_s "
                f"({self.drain_s:g}), so no new replica could help in time"
            )

    def autoscaling_config(self) -> dict[str, Any]:
        """The fields of Serve's AutoscalingConfig."""
        config = {
            "min_replicas": self.min_replicas,
            "max_replicas": self.max_replicas,
            "target_ongoing_requests": self.target_ongoing_requests,
            "metrics_interval_s": self.metrics_interval_s,
            "look_back_period_s": self.look_back_period_s,
            "upscale_delay_s": self.upscale_delay_s,
            "downscale_delay_s": self.downscale_delay_s,
        }
        if self.policy == "requests":
            return config
        aim = {
            "utilization": self.utilization,
            "drain_s": self.drain_s,
            "cold_start_s": self.cold_start_s,
            "downscale_delay_s": self.downscale_delay_s,
        }
        policy = {"policy_function": "serve.capacity.autoscaling:WorkPolicy", "policy_kwargs": aim}
        # The policy has its own delay, because Serve's would go by the last look and not by the highest.
        return config | {"downscale_delay_s": 0, "policy": policy}
