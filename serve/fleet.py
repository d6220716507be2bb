"""How many replicas there are at the moment, as Serve's controller knows it."""

import asyncio
import logging

from ray import serve

logger = logging.getLogger("ray.serve")

_LOOK_INTERVAL_S = 2.0


class Fleet:
    """The running replicas of an application; one of each before the first look."""

    def __init__(self, application: str, denoiser: str, ingress: str) -> None:
        """denoiser, ingress: the names of these deployments"""
        self._application = application
        self._denoiser = denoiser
        self._ingress = ingress
        self._num_denoisers = 1
        self._num_ingresses = 1

    def denoisers_per_ingress(self) -> float:
        """An ingress replica's share of the denoisers. None yet counts as one: a request brings it."""
        return self._num_denoisers / self._num_ingresses

    def num_ingresses(self) -> int:
        """One at least."""
        return self._num_ingresses

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                self._num_denoisers, self._num_ingresses = await asyncio.to_thread(self._look)
            except Exception:  # the boundary of a loop that must outlive a controller's restart
                logger.exception("the number of replicas could not be read; the last known is kept")
            await asyncio.sleep(_LOOK_INTERVAL_S)

    def _look(self) -> tuple[int, int]:
        """Denoisers and ingress replicas."""
        deployments = serve.status().applications[self._application].deployments
        num_denoisers, num_ingresses = (
            max(1, deployments[name].replica_states.get("RUNNING", 0))
            for name in (self._denoiser, self._ingress)
        )
        return num_denoisers, num_ingresses
