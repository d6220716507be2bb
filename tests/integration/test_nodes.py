"""Dying or drained nodes under load, and an update, fail no request. The cluster's nodes only claim to have
GPUs."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve

from cluster.local_cluster import LocalCluster
from serve.ray_internals import Node
from tests.integration.conftest import wait_for
from tests.integration.predictions import create, finished
from tests.integration.simulated import DENOISER, Stages, ask, deployed, simulated_app

APPLICATION = "moved"
STAGES = {"PromptEncoder", "Denoiser", "VaeDecoder"}
PAUSE_S = 1.0  # between requests: one denoiser does two per second
MOVE_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def nodes(cluster: LocalCluster) -> Iterator[list[Node]]:
    """Two nodes with a GPU each, which one replica of each stage fills."""
    added = [cluster.add_node(num_gpus=1, num_cpus=0) for _ in range(2)]
    yield added
    for node in added:
        cluster.kill(node)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(APPLICATION)


@pytest.fixture(scope="module")
def url(nodes: list[Node], base_url: str, folder: Path) -> Iterator[str]:
    with deployed(simulated_app(sections(), folder), APPLICATION, base_url) as started:
        yield started


def sections(encoder_gpus: float = 0.1, decoder_gpus: float = 0.3) -> Stages:
    """With the defaults, one replica of each stage fills a GPU, so that two of each fill both nodes."""

    def stage(num_gpus: float) -> dict[str, object]:
        return {
            "num_cpus": 0,
            "num_gpus": num_gpus,
            "min_replicas": 2,
        }

    return {
        "encoder": stage(encoder_gpus),
        "denoiser": stage(0.6) | DENOISER,
        "decoder": stage(decoder_gpus),
    }


def replica_names() -> list[str]:
    """The names of replicas in Ray."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    prefix = f"SERVE_REPLICA::{APPLICATION}#"
    return [actor["name"] for actor in actors if actor["name"].startswith(prefix)]


def replicas_on(node: Node) -> set[str]:
    """The stages that have a replica on the node."""
    stages = set()
    for name in replica_names():
        try:
            handle = ray.get_actor(name, namespace="serve")
            place = ray.get(
                handle.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()), timeout=10
            )
        except (ValueError, ray.exceptions.RayError):
            continue  # it has just stopped
        if place == node.node_id:
            stages.add(name.split("#")[1])
    return stages


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + MOVE_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


async def ask_steadily(url: str, until: threading.Event) -> list[int]:
    """Sends requests until told to stop. Returns the statuses."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        asked = []
        while not until.is_set():
            asked.append(asyncio.create_task(ask(http, 0, seed=len(asked))))
            await asyncio.sleep(PAUSE_S)
        return await asyncio.gather(*asked)


def lose_nodes(nodes: list[Node], cluster: LocalCluster) -> None:
    """One node dies and is replaced. Then the other is drained, and a new one is added for it."""
    first, second = nodes
    time.sleep(5)
    nodes.remove(second)
    cluster.kill(second)
    third = cluster.add_node(num_gpus=1, num_cpus=0)
    nodes.append(third)
    until(lambda: replicas_on(third) == STAGES, "what the dead node had is not on another one")
    fourth = cluster.add_node(num_gpus=1, num_cpus=0)
    nodes.append(fourth)
    cluster.drain(first, "taken away by the test", time.time() + MOVE_TIMEOUT_S)
    until(lambda: replicas_on(fourth) == STAGES, "what the drained node had is not on another one")
    until(lambda: not replicas_on(first), "the drained node still has replicas")


def check_under_load(url: str, event: Callable[[], None]) -> None:
    """Runs the event under load; every request and every job is answered. The event runs in this thread,
    because Ray starts nodes only in the main thread."""
    is_over = threading.Event()
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor() as threads:
        jobs = [create(client, num_inference_steps=100, seed=seed) for seed in range(4)]
        statuses = threads.submit(asyncio.run, ask_steadily(url, is_over))
        try:
            event()
        finally:
            is_over.set()
        assert set(statuses.result()) == {200}
        assert [finished(client, job["id"])["status"] for job in jobs] == ["succeeded"] * len(jobs)


def accepted(node: Node) -> float:
    """Images that the node's denoiser has accepted, from its metrics."""
    [exported] = [told for told in ray.nodes() if told["NodeID"] == node.node_id]
    url = f"http://{exported['NodeManagerAddress']}:{exported['MetricsExportPort']}/metrics"
    lines = httpx.get(url, timeout=10).text.splitlines()
    name = "ray_midstep_accepted_requests_total{"
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith(name) and 'deployment="Denoiser"' in line
    )


async def ask_one_after_another(url: str, steps: Sequence[int]) -> list[int]:
    """Sends requests so that each reaches a denoiser before the next. Returns the statuses."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        return await asyncio.gather(
            *(ask(http, 0.6 * index, seed=1, steps=number) for index, number in enumerate(steps))
        )


def test_an_image_goes_to_the_denoiser_with_the_least_to_do(url: str, nodes: list[Node]) -> None:
    """By number of images, both denoisers would have two."""
    # Only then does the ingress know what images cost.
    until(lambda: httpx.get(f"{url}/readyz", timeout=30).status_code == 200, "it is not ready")
    before = [accepted(node) for node in nodes]
    assert asyncio.run(ask_one_after_another(url, [100, 30, 30, 30])) == [200] * 4

    def taken() -> list[float]:
        return sorted(accepted(node) - old for node, old in zip(nodes, before, strict=True))

    wait_for(lambda: sum(taken()) == 4)
    assert taken() == [1, 3]


def test_a_dead_node_and_a_drained_one_take_no_request_with_them(
    url: str, nodes: list[Node], cluster: LocalCluster
) -> None:
    assert replicas_on(nodes[0]) == replicas_on(nodes[1]) == STAGES
    check_under_load(url, lambda: lose_nodes(nodes, cluster))


def test_an_update_takes_no_request_with_it(url: str, folder: Path) -> None:
    old = set(replica_names())

    def update() -> None:
        # All replicas learn the costs. In an update Ray may put both replicas of a stage on one node. These
        # shares leave room for that; on full nodes the last replica of another stage would have none.
        app = simulated_app(sections(0.05, 0.15), folder, cost_model="another.json")
        serve.run(app, name=APPLICATION, route_prefix=f"/{APPLICATION}")
        until(lambda: not old & set(replica_names()), "old replicas are still there")

    check_under_load(url, update)
