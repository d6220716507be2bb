"""Ray's reservation for a replica, the same in all sections."""

from typing import Any

from pydantic import Field, NonNegativeFloat, PositiveFloat

from serve.config.schema import Section


class Reservation(Section):
    """Ray's reservation for a replica."""

    num_cpus: NonNegativeFloat = Field(0.25, description="CPUs that Ray reserves for a replica")
    resources: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="Custom Ray resources per replica"
    )

    def ray_actor_options(self) -> dict[str, Any]:
        return {"num_cpus": self.num_cpus, "resources": dict(self.resources)}
