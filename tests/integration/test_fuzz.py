"""Mutated requests to a whole application: every request is answered without a fault, and nothing grows."""

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray

from tests.fuzz import Outcome, send_all
from tests.integration.conftest import replica

NUM_REQUESTS = int(os.environ.get("MIDSTEP_FUZZED_REQUESTS", "5000"))
MAX_GROWTH_BYTES = 32 * 2**20


@pytest.fixture
def logs(head: dict[str, Any]) -> dict[Path, int]:
    """The logs and printed output of Serve's processes, with their present sizes."""
    folder = Path(head["RayletSocketName"]).parents[1] / "logs"
    return {path: path.stat().st_size for path in (*folder.glob("serve/*.log"), *folder.glob("worker-*"))}


def proxy() -> Any:
    [name] = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith("SERVE_PROXY_ACTOR")
    ]
    return ray.get_actor(name, namespace="serve")


def process(actor: Any) -> psutil.Process:
    return psutil.Process(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())))


def test_mutated_requests_are_no_fault_of_ours(
    base_url: str, client: httpx.Client, logs: dict[Path, int]
) -> None:
    processes = [process(proxy()), process(replica("Ingress"))]
    host, port = base_url.removeprefix("http://").split(":")
    middle = NUM_REQUESTS // 2
    outcomes: list[Outcome] = []
    sizes: list[list[int]] = []
    for indices in (range(middle), range(middle, NUM_REQUESTS)):
        outcomes.append(asyncio.run(send_all(host, int(port), iter(indices))))
        sizes.append([process.memory_info().rss for process in processes])
    for outcome in outcomes:
        print(dict(outcome.statuses))
        assert not outcome.wrong, "\n".join(outcome.wrong[:20])
        answered = {status for status in outcome.statuses if status.isdigit()}
        assert {"200", "400", "404", "405", "422"} <= answered, "they reach what they are to try"
    growth = [second - first for first, second in zip(*sizes, strict=True)]
    print(sizes, growth)
    assert max(growth) < MAX_GROWTH_BYTES
    for path, size in logs.items():
        written = path.read_bytes()[size:].decode(errors="replace")
        at = re.search("Traceback|internal_error|never retrieved|^forged", written, re.MULTILINE)
        assert at is None, f"{path}: ...{written[max(0, at.start() - 1000) :][:3000]}"
    assert client.get("/readyz").status_code == 200
