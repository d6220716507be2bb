"""Replicas follow the work: an application with a simulated device, beside the one of the session."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from ray import serve

from cluster.bench.arrivals import poisson
from deployments.engine.cost import Curve, StageCost
from tests.integration.simulated import COST, DENOISER, SHAPE, ask, deployed, simulated_app

APPLICATION = "scaled"
# Replicas here need most of it to start, several at once on two cores.
COLD_START_S, DRAIN_S, DOWNSCALE_DELAY_S = 20.0, 40.0, 10.0
BASE_RATE, STEP_S = 0.4, 30.0  # images/s; how long it is ten times that


@pytest.fixture(scope="module")
def url(base_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    autoscaling = {
        "utilization": 0.7,
        "drain_s": DRAIN_S,
        "cold_start_s": COLD_START_S,
        "downscale_delay_s": DOWNSCALE_DELAY_S,
    }
    stage = {"num_cpus": 0.05, "max_replicas": 3}
    stages: dict[str, dict[str, Any]] = {
        "autoscaling": autoscaling,
        "encoder": stage | {"autoscaling": {"utilization": 0.4}},
        "denoiser": stage | DENOISER | {"min_replicas": 0},
        "decoder": stage | {"max_batch_size": 1},
        "internal": {
            "encoder_max_batch_size": 1,
            "metrics_interval_s": 1.0,
            "look_back_period_s": 3.0,
            "upscale_delay_s": 0.0,
        },
    }
    # No stage hides the step from the next while its replicas start: one encoder passes on 4 texts a second
    # (and is helped at 1.6, as a machine that starts others sends it fewer), and what one denoiser does,
    # 2 images, is more than one decoder should.
    encode, decode = Curve(0.25, 1, 0.25), StageCost(((SHAPE, Curve(0.5, 1, 0.5)),))
    cost = replace(COST, encode=encode, decode=decode)
    folder = tmp_path_factory.mktemp(APPLICATION)
    with deployed(simulated_app(stages, folder, cost), APPLICATION, base_url) as started:
        yield started


def replicas(deployment: str) -> int:
    """That run or are about to."""
    states = serve.status().applications[APPLICATION].deployments[deployment].replica_states
    return sum(number for state, number in states.items() if state in ("STARTING", "RUNNING"))


@dataclass
class Watch:
    """The most replicas of each stage."""

    most: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("PromptEncoder", "Denoiser", "VaeDecoder"), 0)
    )

    async def run(self) -> None:
        while True:
            for name, most in self.most.items():
                self.most[name] = max(most, await asyncio.to_thread(replicas, name))
            await asyncio.sleep(0.25)


async def until_idle(http: httpx.AsyncClient, deployment: str, number: int, timeout_s: float) -> None:
    """While a load balancer asks whether the application is ready."""
    deadline = time.monotonic() + timeout_s
    while (seen := await asyncio.to_thread(replicas, deployment)) > number:
        assert time.monotonic() < deadline, f"{deployment} still has {seen} replicas"
        assert (await http.get("/readyz")).status_code == 200
        await asyncio.sleep(0.5)


async def stays_idle(http: httpx.AsyncClient, deployment: str, seconds: float) -> None:
    """Likewise; Serve would bring the first replica for a call at once."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert (await http.get("/readyz")).status_code == 200, "idle is ready"
        await asyncio.sleep(0.5)
        assert await asyncio.to_thread(replicas, deployment) == 0, "asking has woken it"


def test_replicas_come_with_the_load_and_go_with_it(url: str) -> None:
    """A tenfold step in load, then none: nobody is refused, the queue drains, and all replicas go."""
    watch = Watch()

    async def run() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
            # The first finds no denoiser at all.
            assert await ask(http, 0, 0) == 200
            watching = asyncio.create_task(watch.run())
            before = [ask(http, due_s, seed) for seed, due_s in enumerate(poisson(BASE_RATE, 12, 1))]
            assert set(await asyncio.gather(*before)) == {200}
            assert set(watch.most.values()) == {1}, "one of each is enough for that"
            step = poisson(10 * BASE_RATE, STEP_S, 2)
            after = [ask(http, due_s, 100 + seed) for seed, due_s in enumerate(step)]
            assert set(await asyncio.gather(*after)) == {200}
            assert watch.most["Denoiser"] == 3, "4 images a second need 2.9 denoisers at 70%"
            assert watch.most["VaeDecoder"] in (2, 3), "2 pictures a second need 1.4 decoders, 4 need 2.9"
            assert watch.most["PromptEncoder"] in (2, 3), "4 texts a second need 2.5 encoders at 40%"
            await until_idle(http, "Denoiser", 0, 120)
            await stays_idle(http, "Denoiser", 6)
            await until_idle(http, "VaeDecoder", 1, 60)
            await until_idle(http, "PromptEncoder", 1, 60)
            watching.cancel()
            assert await ask(http, 0, 1) == 200, "back from zero"

    asyncio.run(run())
