"""Observes the replicas of each stage while a load runs."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ray import serve

from cluster.rehearsal.application import NAME

_INTERVAL_S = 0.5
_STAGES = {"PromptEncoder": "encoder", "Denoiser": "denoiser", "VaeDecoder": "decoder"}


@dataclass(frozen=True)
class Sighting:
    """Replicas by stage, under the configuration's names: starting, running, finishing, or waiting for their
    share of a GPU. at_s: from the start of the load"""

    at_s: float
    replicas: Mapping[str, int]


async def watch(now_s: Callable[[], float], seen: list[Sighting]) -> None:
    """Adds a sighting every half second until cancelled."""
    while True:
        seen.append(await asyncio.to_thread(_look, now_s()))
        await asyncio.sleep(_INTERVAL_S)


def _look(at_s: float) -> Sighting:
    deployments = serve.status().applications[NAME].deployments
    return Sighting(
        at_s, {stage: sum(deployments[name].replica_states.values()) for name, stage in _STAGES.items()}
    )
