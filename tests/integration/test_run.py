"""`midstep run` as a service manager sees it: what it prints, and how it ends."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from cluster.local_cluster import LocalCluster
from cluster.ports import free_port
from tests.integration.conftest import MIDSTEP, wait_for
from tests.integration.slow_applications import REASON

TIMEOUT_S = 240.0  # for a busy machine


@contextmanager
def midstep_run(
    folder: Path, application: str, port: int, address: str = ""
) -> Iterator["subprocess.Popen[bytes]"]:
    """Without an address on a Ray of its own, which ends with it. Its output goes to the folder's `log`."""
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {"name": "ours", "import_path": f"tests.integration.slow_applications:{application}"}
        ],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    # An empty RAY_ADDRESS is none.
    environment = os.environ | {
        "PYTHONPATH": str(Path.cwd()),
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": address,
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [MIDSTEP, "run", path], env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_sigterm_ends_it_once_requests_under_way_are_answered(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with midstep_run(tmp_path, "front", port) as process, ThreadPoolExecutor() as threads:
        deadline = time.monotonic() + TIMEOUT_S
        while not answers(url):
            assert process.poll() is None, (tmp_path / "log").read_text()[-4000:]
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-4000:]
            time.sleep(0.5)
        slow = threads.submit(httpx.get, f"{url}/slow", timeout=TIMEOUT_S)
        time.sleep(1)  # until it is running
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(url, timeout=5).status_code == 503)
        assert not slow.done(), "others are refused meanwhile"
        assert slow.result().text == "finished"
        assert process.wait(TIMEOUT_S) == 0
    log = (tmp_path / "log").read_text()
    assert "SIGTERM received" not in log
    assert "graceful_shutdown" not in log, "how Ray ends is not the user's business"
    assert "Traceback" not in log
    shown = [line.split(maxsplit=1) for line in log.splitlines() if line.strip()]
    assert shown[0] == ["Starting", "Ray"]
    assert ["API", f"{url}/v1"] in shown
    assert shown[-1] == ["Stopped."]
    assert "INFO" not in log, "what is no warning goes to the log file"
    [file] = [rest[0] for first, *rest in shown if first == "Log"]
    assert "GET / 200" in Path(file).read_text(), "Serve logs the route of a request"


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).text == "finished"
    except httpx.TransportError:
        return False


def test_an_application_that_cannot_start_ends_it_with_the_reason(tmp_path: Path) -> None:
    with midstep_run(tmp_path, "failing", free_port()) as process:
        assert process.wait(TIMEOUT_S) == 1
    *before, last = (tmp_path / "log").read_text().strip().splitlines()
    assert last == f"ours cannot be started: RuntimeError: {REASON}"
    assert any(f"RuntimeError: {REASON}" in line for line in before), "the replica's own traceback is shown"


def test_a_ray_that_serves_already_is_left_alone(
    base_url: str, cluster: LocalCluster, tmp_path: Path
) -> None:
    with midstep_run(tmp_path, "front", free_port(), cluster.address) as process:
        assert process.wait(TIMEOUT_S) == 1
    log = (tmp_path / "log").read_text()
    assert f"the Ray at {cluster.address} (RAY_ADDRESS) serves already: midstep." in log
    assert httpx.get(f"{base_url}/readyz", timeout=30).status_code == 200
