"""Whether an ingress replica can take requests, told without waking what sleeps."""

from collections.abc import Mapping

from serve.calls.fleet import Fleet
from serve.calls.pipeline import Pipeline
from serve.errors import NotReadyError


class Readiness:
    """min_replicas: the fewest replicas of each stage

    A stage that may have no replicas is called until it has answered once, and then no more, as a call would
    bring one. Not while it has some either: the last may go in that moment.
    """

    def __init__(self, pipeline: Pipeline, fleet: Fleet, min_replicas: Mapping[str, int]) -> None:
        self._pipeline = pipeline
        self._fleet = fleet
        self._may_sleep = frozenset(name for name, fewest in min_replicas.items() if fewest == 0)
        self._always_there = min_replicas.keys() - self._may_sleep

    async def check(self, timeout_s: float) -> None:
        """Returns when every stage has answered or may sleep. Raises NotReadyError."""
        for stage in sorted(self._always_there):
            if not self._fleet.has_replica(stage):
                raise NotReadyError(f"The {stage} has no replica that runs.", retry_after_s=1)
        await self._pipeline.check_ready(timeout_s, self._may_sleep)
