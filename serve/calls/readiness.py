"""Whether an ingress replica can take requests, checked without waking sleeping stages."""

from collections.abc import Mapping

from serve.calls.fleet import Fleet
from serve.calls.pipeline import Pipeline
from serve.errors import NotReadyError


class Readiness:
    """min_replicas: the fewest replicas of each stage

    A stage that may scale to zero is called until it has answered once. Later calls would wake it. It is not
    called while it has replicas either, because the last one may stop in that moment.
    """

    def __init__(self, pipeline: Pipeline, fleet: Fleet, min_replicas: Mapping[str, int]) -> None:
        self._pipeline = pipeline
        self._fleet = fleet
        self._may_sleep = frozenset(name for name, fewest in min_replicas.items() if fewest == 0)
        self._always_there = min_replicas.keys() - self._may_sleep

    async def check(self, timeout_s: float) -> None:
        """Returns when every stage has answered or may scale to zero. Raises NotReadyError."""
        for stage in sorted(self._always_there):
            if not self._fleet.has_replica(stage):
                raise NotReadyError(f"The {stage} has no running replica.", retry_after_s=1)
        await self._pipeline.costs.check_ready(timeout_s, self._may_sleep)
