"""Devices that are lost, that break every call, or whose memory is too small: simulated, over real HTTP."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import ray

from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.health import MAX_FAILURES
from tests.integration.conftest import Metric, wait_for
from tests.integration.simulated import SHAPE, deployed, simulated_app

APPLICATION = "faulty"
DEPLOYMENTS = {"encoder": "PromptEncoder", "denoiser": "Denoiser", "decoder": "VaeDecoder"}
FAST = CostModel(
    encode=Curve(0.002, 8, 0.0005),
    forward=StageCost(((SHAPE, Curve(0.01, 16, 0.001)),)),
    decode=StageCost(((SHAPE, Curve(0.02, 8, 0.001)),)),
)
NUM_REPLICAS = 2
# A burst's images meet in forwards, and then in batches to decode.
DENOISER = {"max_rows": 16, "deterministic_rows": 4, "max_batch_size": 8, "max_ongoing_requests": 16}
DECODER = {"batch_wait_timeout_s": 0.2}
# Within which a replica that fails everything must be gone.
GONE_AFTER_S = 5.0


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def url(base_url: str, faults: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    autoscaling = {"min_replicas": NUM_REPLICAS, "max_replicas": NUM_REPLICAS}
    stage = {"num_cpus": 0.05, "autoscaling": autoscaling}
    stages = {"encoder": stage, "denoiser": stage | DENOISER, "decoder": stage | DECODER}
    app = simulated_app(stages, tmp_path_factory.mktemp(APPLICATION), FAST, faults=faults)
    with deployed(app, APPLICATION, base_url) as started:
        yield started


def replicas(stage: str) -> dict[int, psutil.Process]:
    """The processes of a stage's replicas."""
    names = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if f"{APPLICATION}#{DEPLOYMENTS[stage]}#" in actor["name"]
    ]
    actors = [ray.get_actor(name, namespace="serve") for name in names]
    pids = ray.get([actor.__ray_call__.remote(lambda _: __import__("os").getpid()) for actor in actors])
    return {pid: psutil.Process(pid) for pid in pids}


def until_all_are_there(stage: str) -> dict[int, psutil.Process]:
    found: dict[int, psutil.Process] = {}

    def are_there() -> bool:
        try:
            found.clear()
            found.update(replicas(stage))
        except (ray.exceptions.RayActorError, ValueError, psutil.NoSuchProcess):
            return False
        return len(found) == NUM_REPLICAS

    wait_for(are_there, 120)
    return found


async def ask(http: httpx.AsyncClient, name: str) -> httpx.Response:
    body = {"prompt": f"a red circle, {name}", "num_inference_steps": 4}
    return await http.post("/v1/images/generations", json=body)


def burst(url: str, name: str, number: int = 8) -> list[httpx.Response]:
    """All at once; texts that no cache has."""

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            return await asyncio.gather(*(ask(http, f"{name} {index}") for index in range(number)))

    return asyncio.run(run())


@pytest.mark.parametrize("stage", DEPLOYMENTS)
def test_a_device_that_was_lost_while_idle_costs_no_request(url: str, faults: Path, stage: str) -> None:
    processes = until_all_are_there(stage)
    fault = faults / f"{stage}.lost"
    fault.touch()
    answers = burst(url, f"lost {stage}")
    assert not fault.exists(), "no device has found it"
    assert [answer.status_code for answer in answers] == 8 * [200], [answer.text[:300] for answer in answers]
    wait_for(lambda: sum(not process.is_running() for process in processes.values()) == 1, GONE_AFTER_S)


@pytest.mark.parametrize("stage", DEPLOYMENTS)
def test_a_replica_that_breaks_every_call_is_gone_and_the_others_serve(
    url: str, faults: Path, stage: str
) -> None:
    """Its errors do not say why. Those that it has failed are told; it draws no more than those."""
    processes = until_all_are_there(stage)
    (faults / f"{stage}.broken").touch()
    failed = 0
    for number in range(60):
        [answer] = burst(url, f"broken {stage} {number}", 1)
        failed += answer.status_code != 200
        if not all(process.is_running() for process in processes.values()):
            break
    assert [process.is_running() for process in processes.values()].count(False) == 1
    assert failed < MAX_FAILURES
    assert [answer.status_code for answer in burst(url, f"after {stage}")] == 8 * [200]


@pytest.mark.parametrize(("stage", "most"), [("encoder", 1), ("denoiser", 2), ("decoder", 1)])
def test_what_does_not_fit_into_memory_is_done_in_smaller_parts(
    url: str, faults: Path, metric: Metric, stage: str, most: int
) -> None:
    processes = until_all_are_there(stage)
    before = metric("ray_midstep_out_of_memory_total")
    memory = faults / f"{stage}.memory"
    memory.write_text(str(most))
    try:
        answers = burst(url, f"small {stage}", 24)
        assert [answer.status_code for answer in answers] == 24 * [200]
        wait_for(lambda: metric("ray_midstep_out_of_memory_total") > before)
    finally:
        memory.unlink()
    assert all(process.is_running() for process in processes.values())


@pytest.mark.parametrize(("stage", "most"), [("encoder", 0), ("denoiser", 1), ("decoder", 0)])
def test_only_what_does_not_fit_alone_is_refused(url: str, faults: Path, stage: str, most: int) -> None:
    """The denoiser has room for one row, and guidance takes two."""
    processes = until_all_are_there(stage)
    memory = faults / f"{stage}.memory"
    memory.write_text(str(most))
    try:
        answers = burst(url, f"too large {stage}", 2 * MAX_FAILURES)
    finally:
        memory.unlink()
    for answer in answers:
        assert answer.status_code == 507, answer.text
        assert answer.json()["error"]["code"] == "out_of_memory"
        assert "too little memory" in answer.json()["detail"]
    assert all(process.is_running() for process in processes.values()), "the device is not to blame"
