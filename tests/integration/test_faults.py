"""Devices that are lost, that break every call, or that lack memory: simulated, over real HTTP."""

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
    # So long that other images come meanwhile.
    decode=StageCost(((SHAPE, Curve(0.1, 8, 0.001)),)),
)
NUM_REPLICAS = 2
# The images of a burst share forwards, and their texts share batches.
DENOISER = {"max_rows": 16, "max_ongoing_requests": 16}
INTERNAL = {"batch_wait_timeout_s": 0.2}
# A replica that fails every call must be gone within this time.
GONE_AFTER_S = 5.0


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def url(base_url: str, faults: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    stage = {"num_cpus": 0.05, "min_replicas": NUM_REPLICAS}
    stages = {"encoder": stage, "denoiser": stage | DENOISER, "decoder": stage, "internal": INTERNAL}
    app = simulated_app(stages, tmp_path_factory.mktemp(APPLICATION), FAST, faults=faults)
    with deployed(app, APPLICATION, base_url) as started:
        yield started


def replicas(stage: str) -> list[psutil.Process]:
    """The processes of a stage's replicas."""
    names = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if f"{APPLICATION}#{DEPLOYMENTS[stage]}#" in actor["name"]
    ]
    actors = [ray.get_actor(name, namespace="serve") for name in names]
    pids = ray.get([actor.__ray_call__.remote(lambda _: __import__("os").getpid()) for actor in actors])
    return [psutil.Process(pid) for pid in pids]


@pytest.fixture
def processes(url: str) -> dict[str, list[psutil.Process]]:
    """The processes of all stages' replicas, when all replicas are running again."""
    found: dict[str, list[psutil.Process]] = {}

    def are_there() -> bool:
        try:
            found.update({stage: replicas(stage) for stage in DEPLOYMENTS})
        except (ray.exceptions.RayActorError, ValueError, psutil.NoSuchProcess):
            return False
        return all(len(of_stage) == NUM_REPLICAS for of_stage in found.values())

    wait_for(are_there, 120)
    return found


def num_gone(processes: list[psutil.Process]) -> int:
    return sum(not process.is_running() for process in processes)


async def ask(http: httpx.AsyncClient, name: str, size: str) -> httpx.Response:
    body = {"prompt": f"a red circle, {name}", "num_inference_steps": 4, "size": size}
    return await http.post("/v1/images/generations", json=body)


def burst(url: str, name: str, number: int = 8, size: str = "128x128") -> list[httpx.Response]:
    """Sends requests at once, with texts that no cache has."""

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            return await asyncio.gather(*(ask(http, f"{name} {index}", size) for index in range(number)))

    return asyncio.run(run())


@pytest.mark.parametrize("fault", ["lost", "taken"])
def test_a_device_that_was_lost_while_idle_costs_no_request(
    url: str, faults: Path, processes: dict[str, list[psutil.Process]], fault: str
) -> None:
    """One device is lost in each stage: its errors say so, or its memory is taken. All sizes had fitted."""
    for number in range(10):
        burst(url, f"before {fault} {number}", 2 * NUM_REPLICAS)
    files = [faults / f"{stage}.{fault}" for stage in DEPLOYMENTS]
    for file in files:
        file.touch()
    answers = burst(url, fault)
    assert not [file for file in files if file.exists()], "no device has found it"
    assert [answer.status_code for answer in answers] == 8 * [200], [answer.text[:300] for answer in answers]
    for of_stage in processes.values():
        wait_for(lambda of_stage=of_stage: num_gone(of_stage) == 1, GONE_AFTER_S)


def test_a_replica_that_breaks_every_call_is_gone_and_the_others_serve(
    url: str, faults: Path, processes: dict[str, list[psutil.Process]]
) -> None:
    """Its errors do not say why. Only the requests that it failed get an error; it attracts no others."""
    for stage, of_stage in processes.items():
        (faults / f"{stage}.broken").touch()
        failed = 0
        for number in range(60):
            [answer] = burst(url, f"broken {stage} {number}", 1)
            failed += answer.status_code != 200
            if num_gone(of_stage):
                break
        assert num_gone(of_stage) == 1
        assert failed < MAX_FAILURES
    assert [answer.status_code for answer in burst(url, "after")] == 8 * [200]


@pytest.mark.parametrize(("stage", "most"), [("encoder", 1), ("denoiser", 2), ("decoder", 1)])
def test_what_does_not_fit_into_memory_is_done_in_smaller_parts(
    url: str,
    faults: Path,
    metric: Metric,
    processes: dict[str, list[psutil.Process]],
    stage: str,
    most: int,
) -> None:
    before = metric("ray_midstep_out_of_memory_total")
    memory = faults / f"{stage}.memory"
    memory.write_text(str(most))
    try:
        for number in range(5):  # one decoder has several at once sooner or later
            answers = burst(url, f"small {stage} {number}", 24)
            assert [answer.status_code for answer in answers] == 24 * [200]
        wait_for(lambda: metric("ray_midstep_out_of_memory_total") > before)
    finally:
        memory.unlink()
    assert not num_gone(processes[stage])


@pytest.mark.parametrize(("stage", "most", "size"), [("denoiser", 1, "64x64"), ("decoder", 0, "64x128")])
def test_only_what_does_not_fit_alone_is_refused(
    url: str, faults: Path, processes: dict[str, list[psutil.Process]], stage: str, most: int, size: str
) -> None:
    """The denoiser has room for one row, and guidance needs two. No other test uses these sizes."""
    memory = faults / f"{stage}.memory"
    memory.write_text(str(most))
    try:
        answers = burst(url, f"too large {stage}", 2 * MAX_FAILURES, size)
    finally:
        memory.unlink()
    for answer in answers:
        assert answer.status_code == 507, answer.text
        assert answer.json()["error"]["code"] == "out_of_memory"
        assert "too little memory" in answer.json()["detail"]
    assert not num_gone(processes[stage]), "the device is not to blame"
