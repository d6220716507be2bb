"""Replicas follow the work: an application with a simulated device, beside the session's application."""

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
# Several replicas that start at once on two cores need most of the cold start.
COLD_START_S, DRAIN_S, DOWNSCALE_DELAY_S = 20.0, 40.0, 10.0
BASE_RATE, STEP_S = 0.4, 30.0  # images/s; seconds at ten times that rate
MAX_STEPS_S = 150.0


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
    # No stage may hide the step from the next while its replicas start. One encoder passes on 4 texts per
    # second (and gets help at 1.6, because a machine that starts replicas sends it fewer), and one denoiser's
    # 2 images per second are more than one decoder should do.
    encode, decode = Curve(0.25, 1, 0.25), StageCost(((SHAPE, Curve(0.5, 1, 0.5)),))
    cost = replace(COST, encode=encode, decode=decode)
    folder = tmp_path_factory.mktemp(APPLICATION)
    with deployed(simulated_app(stages, folder, cost), APPLICATION, base_url) as started:
        yield started


def replicas(deployment: str) -> int:
    """The number of running and starting replicas."""
    states = serve.status().applications[APPLICATION].deployments[deployment].replica_states
    return sum(number for state, number in states.items() if state in ("STARTING", "RUNNING"))


@dataclass
class Watch:
    """Records the most replicas of each stage."""

    most: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("PromptEncoder", "Denoiser", "VaeDecoder"), 0)
    )

    @property
    def have_come(self) -> bool:
        most = self.most
        return most["Denoiser"] == 3 and most["VaeDecoder"] >= 2 and most["PromptEncoder"] >= 2

    async def run(self) -> None:
        while True:
            for name, most in self.most.items():
                self.most[name] = max(most, await asyncio.to_thread(replicas, name))
            await asyncio.sleep(0.25)


async def until_idle(http: httpx.AsyncClient, deployment: str, number: int, timeout_s: float) -> None:
    """Waits for the number of replicas, while a load balancer asks whether the application is ready."""
    deadline = time.monotonic() + timeout_s
    while (seen := await asyncio.to_thread(replicas, deployment)) > number:
        assert time.monotonic() < deadline, f"{deployment} still has {seen} replicas"
        assert (await http.get("/readyz")).status_code == 200
        await asyncio.sleep(0.5)


async def stays_idle(http: httpx.AsyncClient, deployment: str, seconds: float) -> None:
    """Checks that no replica starts meanwhile; Serve would start the first one at once for a call."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert (await http.get("/readyz")).status_code == 200, "idle is ready"
        await asyncio.sleep(0.5)
        assert await asyncio.to_thread(replicas, deployment) == 0, "asking has woken it"


def test_replicas_come_with_the_load_and_go_with_it(url: str) -> None:
    """A tenfold step in load is followed by none: nobody is refused, the queue drains, all replicas go."""
    watch = Watch()

    async def run() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
            # The first request finds no denoiser at all.
            assert await ask(http, 0, 0) == 200
            watching = asyncio.create_task(watch.run())
            before = [ask(http, due_s, seed) for seed, due_s in enumerate(poisson(BASE_RATE, 12, 1))]
            assert set(await asyncio.gather(*before)) == {200}
            assert set(watch.most.values()) == {1}, "one of each is enough for that"
            # For as long as replicas take to start here, which is most of a slow machine's time.
            deadline = time.monotonic() + MAX_STEPS_S
            while not watch.have_come and time.monotonic() < deadline:
                step = poisson(10 * BASE_RATE, STEP_S, 2)
                after = [ask(http, due_s, 100 + seed) for seed, due_s in enumerate(step)]
                assert set(await asyncio.gather(*after)) == {200}
            assert watch.have_come, (
                f"{watch.most}: 4 images a second need 2.9 denoisers at 70%, and 2.5 encoders at 40%; "
                "2 pictures a second need 1.4 decoders, 4 need 2.9"
            )
            await until_idle(http, "Denoiser", 0, 120)
            await stays_idle(http, "Denoiser", 6)
            await until_idle(http, "VaeDecoder", 1, 60)
            await until_idle(http, "PromptEncoder", 1, 60)
            watching.cancel()
            assert await ask(http, 0, 1) == 200, "back from zero"

    asyncio.run(run())
