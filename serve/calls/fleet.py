"""The replicas of an application, from Serve's controller."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve.ray_internals import serve_details

logger = logging.getLogger("ray.serve")

_LOOK_INTERVAL_S = 2.0
# Readiness waits for the first look that sees all stages, so the first minute has more looks.
_STARTING_S = 60.0
_STARTING_INTERVAL_S = 0.25
# Replicas that take requests, also after the controller restarted or while a replacement is awaited.
_SERVING = ("RUNNING", "UPDATING", "RECOVERING", "PENDING_MIGRATION")
_STOPPING = "STOPPING"


@dataclass(frozen=True, slots=True)
class Replicas:
    """The replicas of a deployment by state. actors: the running ones' actor names by replica id"""

    running: int
    starting: int = 0
    stopping: int = 0
    actors: Mapping[str, str] = field(default_factory=dict)


class Fleet:
    """The replicas of an application. Before the first look it assumes that one of each is running.

    replicas: by stage, and those of `ingress`
    is_leaving: this ingress replica is being stopped, or its application gets no more requests
    """

    def __init__(self, application: str, stages: Mapping[str, str], ingress: str, replica: str) -> None:
        """stages: names of deployments by stage; ingress: the ingress deployment; replica: this one's id"""
        self._application = application
        self._deployments = {"ingress": ingress, **stages}
        self._replica = replica
        self.replicas: Mapping[str, Replicas] = dict.fromkeys(self._deployments, Replicas(running=1))
        self.is_leaving = False

    def denoisers_per_ingress(self) -> float:
        """An ingress replica's share of the denoisers. None counts as one, because a request starts one."""
        return max(1, self.replicas["denoiser"].running) / self.num_ingresses()

    def num_ingresses(self) -> int:
        """The number of running ingress replicas, at least one."""
        return max(1, self.replicas["ingress"].running)

    def has_replica(self, stage: str) -> bool:
        return self.replicas[stage].running > 0

    async def watch(self) -> None:
        """Keeps the numbers up to date until cancelled."""
        started_at = time.monotonic()
        while True:
            try:
                self.see(await asyncio.to_thread(serve_details))
            except Exception:  # the boundary of a loop that must outlive a controller's restart
                logger.exception("the number of replicas could not be read; keeping the last known number")
            is_starting = time.monotonic() - started_at < _STARTING_S
            await asyncio.sleep(_STARTING_INTERVAL_S if is_starting else _LOOK_INTERVAL_S)

    def see(self, details: Mapping[str, Any]) -> None:
        """Takes in what `serve_details` says."""
        application = details["applications"].get(self._application, {})
        # Serve forgets deployments before the ingress has ended. They keep the last known number.
        known = application.get("deployments", {})
        self.replicas = dict(self.replicas) | {
            stage: _replicas(known[name]["replicas"])
            for stage, name in self._deployments.items()
            if name in known
        }
        ingresses = known.get(self._deployments["ingress"], {"replicas": []})["replicas"]
        stays = any(one["replica_id"] == self._replica and one["state"] != _STOPPING for one in ingresses)
        # `midstep run` takes the route away before it waits for the requests under way.
        self.is_leaving = not stays or application["route_prefix"] is None


def _replicas(details: list[Mapping[str, Any]]) -> Replicas:
    states = Counter(one["state"] for one in details)
    actors = {one["replica_id"]: one["actor_name"] for one in details if one["state"] in _SERVING}
    return Replicas(len(actors), states["STARTING"], states[_STOPPING], actors)
