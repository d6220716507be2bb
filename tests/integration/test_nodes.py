"""Nodes that die or are drained under load take no request with them: a cluster of GPU nodes, so they say."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import ray
from ray._private.node import Node

from cluster.rehearsal.local_cluster import LocalCluster
from tests.integration.predictions import create, finished
from tests.integration.simulated import DENOISER, ask, simulated_application

APPLICATION = "moved"
STAGES = {"PromptEncoder", "Denoiser", "VaeDecoder"}
PAUSE_S = 1.0  # between requests: one denoiser does two a second
MOVE_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def nodes(cluster: LocalCluster) -> Iterator[list[Node]]:
    """Two, with a GPU each, which one replica of each stage fills."""
    added = [cluster.add_node(num_gpus=1, num_cpus=0) for _ in range(2)]
    yield added
    for node in added:
        cluster.kill(node)


@pytest.fixture(scope="module")
def url(nodes: list[Node], base_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    def stage(num_gpus: float) -> dict[str, object]:
        return {
            "num_cpus": 0,
            "num_gpus": num_gpus,
            "autoscaling": {"min_replicas": 2, "max_replicas": 2},
        }

    stages = {"encoder": stage(0.1), "denoiser": stage(0.6) | DENOISER, "decoder": stage(0.3)}
    folder: Path = tmp_path_factory.mktemp(APPLICATION)
    with simulated_application(APPLICATION, stages, folder, base_url) as started:
        yield started


def replicas_on(node: Node) -> set[str]:
    """The stages that have a replica there."""
    stages = set()
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if not actor["name"].startswith(f"SERVE_REPLICA::{APPLICATION}#"):
            continue
        try:
            handle = ray.get_actor(actor["name"], namespace="serve")
            place = ray.get(
                handle.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()), timeout=10
            )
        except (ValueError, ray.exceptions.RayError):
            continue  # it has just gone
        if place == node.node_id:
            stages.add(actor["name"].split("#")[1])
    return stages


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + MOVE_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


async def ask_steadily(url: str, until: threading.Event) -> list[int]:
    """The statuses, once all are answered."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        asked = []
        while not until.is_set():
            asked.append(asyncio.create_task(ask(http, 0, seed=len(asked))))
            await asyncio.sleep(PAUSE_S)
        return await asyncio.gather(*asked)


def lose_nodes(nodes: list[Node], cluster: LocalCluster) -> None:
    """One dies and is replaced, and then the other is taken away; a new one is there for it."""
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


def test_a_dead_node_and_a_drained_one_take_no_request_with_them(
    url: str, nodes: list[Node], cluster: LocalCluster
) -> None:
    assert replicas_on(nodes[0]) == replicas_on(nodes[1]) == STAGES
    is_over = threading.Event()
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor() as threads:
        jobs = [create(client, num_inference_steps=100, seed=seed) for seed in range(4)]
        # Not the other way round: Ray starts nodes in the main thread only.
        statuses = threads.submit(asyncio.run, ask_steadily(url, is_over))
        try:
            lose_nodes(nodes, cluster)
        finally:
            is_over.set()
        assert set(statuses.result()) == {200}
        assert [finished(client, job["id"])["status"] for job in jobs] == ["succeeded"] * len(jobs)
