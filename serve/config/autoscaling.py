"""The `autoscaling` sections of the configuration."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from serve.config.schema import Section


class AutoscalingSection(Section):
    """How many replicas a stage has, by Serve's own policy: so many requests for each."""

    min_replicas: NonNegativeInt = Field(1, description="never fewer replicas; 0 lets go of all when idle")
    max_replicas: PositiveInt = Field(1, description="never more replicas")
    target_ongoing_requests: PositiveFloat = Field(64, description="requests per replica")
    metrics_interval_s: PositiveFloat = Field(5, description="how often the load is reported")
    look_back_period_s: PositiveFloat = Field(15, description="over how long the load is averaged")
    upscale_delay_s: NonNegativeFloat = Field(5, description="how long the load must be high")
    downscale_delay_s: NonNegativeFloat = Field(300, description="how long the load must be low")

    @model_validator(mode="after")
    def _check_order(self) -> "AutoscalingSection":
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) is more than max_replicas ({self.max_replicas})"
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether the number of replicas may change."""
        return self.min_replicas < self.max_replicas

    def autoscaling_config(self) -> dict[str, Any]:
        """As Serve's AutoscalingConfig."""
        return self.model_dump(include=set(AutoscalingSection.model_fields))


class WorkAutoscalingSection(AutoscalingSection):
    """How many replicas a stage has, by the work that arrives and waits."""

    policy: Literal["work", "requests"] = Field(
        "work", description="`work`: by device-seconds that arrive and wait; `requests`: as Serve does it"
    )
    utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.7, description="share of its time that a device should be busy, at most (`work`)"
    )
    drain_s: PositiveFloat = Field(60, description="seconds within which what waits is to be done (`work`)")
    cold_start_s: NonNegativeFloat = Field(
        30, description="seconds that a new replica needs before it works (`work`)"
    )
    target_ongoing_requests: PositiveFloat = Field(8, description="requests per replica (`requests`)")

    @model_validator(mode="after")
    def _check_cold_start(self) -> "WorkAutoscalingSection":
        if self.cold_start_s >= self.drain_s:
            raise ValueError(
                f"cold_start_s ({self.cold_start_s:g}) is not less than drain_s ({self.drain_s:g}), "
                "so no new replica could help in time"
            )
        return self

    def autoscaling_config(self) -> dict[str, Any]:
        """As Serve's AutoscalingConfig."""
        config = super().autoscaling_config()
        if self.policy == "requests":
            return config
        aim = self.model_dump(include={"utilization", "drain_s", "cold_start_s", "downscale_delay_s"})
        policy = {"policy_function": "serve.capacity.autoscaling:WorkPolicy", "policy_kwargs": aim}
        # The delay is the policy's own: at its end Serve's would go by the last look and not by the highest.
        return config | {"downscale_delay_s": 0, "policy": policy}
