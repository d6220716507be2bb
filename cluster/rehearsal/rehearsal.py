"""A load on a configuration's application with simulated GPUs, observed over time."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import ray

from cluster.bench.load import RequestOutcome, Target, run_load
from cluster.bench.mix import PlannedRequest
from cluster.rehearsal.application import running
from cluster.rehearsal.watch import Sighting, watch
from deployments.engine.model_source import load_model_info
from serve.config.app import AppConfig

OnOutcome = Callable[[RequestOutcome], None]


@dataclass(frozen=True)
class Rehearsal:
    """The requests' outcomes, and observations while they were served.

    gpus: GPUs of one replica of each stage; num_gpus: all GPUs; replicas beyond them wait for theirs
    """

    outcomes: Sequence[RequestOutcome]
    sightings: Sequence[Sighting]
    gpus: Mapping[str, float]
    num_gpus: float

    def gpus_held(self) -> list[tuple[float, float]]:
        """(seconds from the start, GPUs that replicas hold)"""

        def held(seen: Sighting) -> float:
            return sum(self.gpus[stage] * number for stage, number in seen.replicas.items())

        return [(seen.at_s, min(held(seen), self.num_gpus)) for seen in self.sightings]

    def gpu_seconds(self) -> float:
        """GPU-seconds to pay for, from the start of the load until all requests are answered."""
        return sum((end - start) * held for (start, held), (end, _) in pairwise(self.gpus_held()))


def rehearse(
    config: AppConfig, planned: Sequence[PlannedRequest], timeout_s: float, on_outcome: OnOutcome
) -> Rehearsal:
    """Runs on the Ray that this process is connected to. Raises ConfigError."""
    gpus = config.num_gpus()
    sightings: list[Sighting] = []
    height, width = config.default_size(load_model_info(config.model.source()))
    with running(config) as url:
        target = Target(url, picture_size=(width, height))
        outcomes = asyncio.run(_loaded(target, planned, timeout_s, on_outcome, sightings))
    return Rehearsal(outcomes, sightings, gpus, ray.cluster_resources()["GPU"])


async def _loaded(
    target: Target,
    planned: Sequence[PlannedRequest],
    timeout_s: float,
    on_outcome: OnOutcome,
    sightings: list[Sighting],
) -> list[RequestOutcome]:
    clock = asyncio.get_running_loop().time
    start = clock()
    watching = asyncio.create_task(watch(lambda: clock() - start, sightings))
    try:
        return await run_load(target, planned, timeout_s, on_outcome)
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
