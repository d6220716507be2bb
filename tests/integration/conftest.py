"""One real Ray and one real application over real HTTP for the whole session, started as a user would."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml

from cluster.local_cluster import LocalCluster, local_cluster
from cluster.ports import free_port

START_TIMEOUT_S = 240.0
MAX_QUEUE = 24
LEASE_S = 4.0
MIDSTEP = Path(sys.executable).with_name("midstep")
Metric = Callable[[str], float]


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(free_port()) as started:
        yield started


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the application's jobs."""
    return tmp_path_factory.mktemp("midstep") / "data"


@pytest.fixture(scope="session")
def cost_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cost model of the embedded model on this machine, so that no replica measures again."""
    file = tmp_path_factory.mktemp("profile") / "cost_model.json"
    subprocess.run([MIDSTEP, "profile", "serve_config.yaml", "--output", file], check=True)
    return file


@pytest.fixture(scope="session")
def base_url(cluster: LocalCluster, cost_model: Path, data_folder: Path) -> Iterator[str]:
    """The shipped configuration on a free port, run by the same command as `make serve`."""
    folder = data_folder.parent
    url = f"http://127.0.0.1:{free_port()}"
    settings: dict[str, Any] = yaml.safe_load(Path("serve_config.yaml").read_text())
    settings["http_options"]["port"] = int(url.rsplit(":", 1)[1])
    settings["logging_config"] = {"encoding": "JSON"}
    args = settings["applications"][0]["args"]
    args["model"] |= {"device": "cpu", "cost_model": str(cost_model)}
    # The row cap is fixed, because measurements on a busy machine would differ from run to run.
    args |= {
        "denoiser": {"rows_per_forward": 16},
        "limits": {"max_queue": MAX_QUEUE},
        "jobs": {"data_folder": str(data_folder), "allow_private_webhooks": True},
        "internal": {"lease_s": LEASE_S},
    }
    config = folder / "serve_config.yaml"
    config.write_text(yaml.safe_dump(settings))
    log = (folder / "serve.log").open("w")
    process = subprocess.Popen(
        [MIDSTEP, "run", config],
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_until_ready(url, process, Path(log.name))
        yield url
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"midstep run has ended:\n{log.read_text()[-4000:]}"
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"not ready within {START_TIMEOUT_S} s:\n{log.read_text()[-4000:]}")


@pytest.fixture
def client(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, timeout=120) as opened:
        yield opened


@pytest.fixture
def head(cluster: LocalCluster) -> dict[str, Any]:
    """Ray's description of the node that runs the session's application."""
    nodes: list[dict[str, Any]] = ray.nodes()
    return next(node for node in nodes if "node:__internal_head__" in node["Resources"])


@pytest.fixture
def metrics_url(head: dict[str, Any]) -> str:
    """The URL where Ray exports the head's metrics."""
    return f"http://{head['NodeManagerAddress']}:{head['MetricsExportPort']}/metrics"


@pytest.fixture
def metric(metrics_url: str) -> Metric:
    """The sum of a metric of the head over all its tags."""

    def read(name: str) -> float:
        pattern = re.compile(rf"^{name}(?:\{{.*\}})? (\S+)$", re.MULTILINE)
        return sum(float(value) for value in pattern.findall(httpx.get(metrics_url, timeout=10).text))

    return read


def wait_for(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Waits until the condition is true. Metrics are exported only from time to time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.25)


def settled(metric: Metric, name: str) -> float:
    """A metric's value once it no longer changes, since earlier work is exported a little later."""
    value = metric(name)
    while True:
        time.sleep(1.5)
        if (later := metric(name)) == value:
            return value
        value = later


def replica(deployment: str) -> Any:
    """The actor of a deployment's only replica."""
    [name] = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if f"#{deployment}#" in actor["name"]
    ]
    return ray.get_actor(name, namespace="serve")
