"""The current number of replicas, from Serve's controller."""

import asyncio
import logging
from collections.abc import Mapping

from serve.ray_internals import serve_details

logger = logging.getLogger("ray.serve")

_LOOK_INTERVAL_S = 2.0
# Replicas that take requests, also after the controller restarted or while a replacement is awaited.
_SERVING = ("RUNNING", "UPDATING", "RECOVERING", "PENDING_MIGRATION")


class Fleet:
    """The running replicas of an application. Before the first look it assumes one of each."""

    def __init__(self, application: str, stages: Mapping[str, str], ingress: str) -> None:
        """stages: deployment names by encoder, denoiser and decoder; ingress: the ingress deployment"""
        self._application = application
        self._deployments = {**stages, "ingress": ingress}
        self._running = dict.fromkeys(self._deployments, 1)

    def denoisers_per_ingress(self) -> float:
        """An ingress replica's share of the denoisers. None counts as one, because a request starts one."""
        return max(1, self._running["denoiser"]) / self.num_ingresses()

    def num_ingresses(self) -> int:
        """The number of ingress replicas, at least one."""
        return max(1, self._running["ingress"])

    def has_replica(self, stage: str) -> bool:
        return self._running[stage] > 0

    async def watch(self) -> None:
        """Keeps the numbers up to date until cancelled."""
        while True:
            try:
                self._running = await asyncio.to_thread(self._look)
            except Exception:  # the boundary of a loop that must outlive a controller's restart
                logger.exception("the number of replicas could not be read; keeping the last known number")
            await asyncio.sleep(_LOOK_INTERVAL_S)

    def _look(self) -> dict[str, int]:
        application = serve_details()["applications"].get(self._application, {})
        # Serve forgets deployments before the ingress has ended. They keep the last known number.
        known = application.get("deployments", {})
        return self._running | {
            stage: sum(replica["state"] in _SERVING for replica in known[name]["replicas"])
            for stage, name in self._deployments.items()
            if name in known
        }
