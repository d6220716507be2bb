"""The whole application is killed and started again: every job that was acknowledged finishes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.ports import free_port
from tests.integration.conftest import START_TIMEOUT_S, wait_until_ready

NUM_JOBS = 5
TIMEOUT_S = 180.0


@contextmanager
def application(folder: Path, log: Path) -> Iterator[httpx.Client]:
    """Killed at the end, all of its processes at once."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.whole_application", folder, str(port)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, log)
        with httpx.Client(base_url=url, timeout=START_TIMEOUT_S) as client:
            yield client
    finally:
        for left in psutil.process_iter():
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(left.pid) == process.pid:
                    left.send_signal(signal.SIGKILL)
        process.wait()


def prediction(client: httpx.Client, job_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.get(f"/v1/predictions/{job_id}").json()
    return answer


def test_every_acknowledged_job_finishes_after_a_restart(tmp_path: Path) -> None:
    given = {"prompt": "a red star", "num_inference_steps": 100, "num_outputs": 2, "deterministic": True}
    body = {"version": "shapes", "input": given | {"seed": 1}}
    with application(tmp_path / "data", tmp_path / "first.log") as client:
        ids = [client.post("/v1/predictions", json=body).json()["id"] for _ in range(NUM_JOBS)]
        deadline = time.monotonic() + TIMEOUT_S
        while prediction(client, ids[0])["progress"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert prediction(client, ids[-1])["status"] != "succeeded", "there is something left to lose"
    with application(tmp_path / "data", tmp_path / "second.log") as client:
        pictures = set()
        for job_id in ids:
            deadline = time.monotonic() + TIMEOUT_S
            while (job := prediction(client, job_id))["status"] in ("starting", "processing"):
                assert time.monotonic() < deadline, job
                time.sleep(0.2)
            assert job["status"] == "succeeded", job
            # The address is another one now; the path of the image is not.
            paths = [httpx.URL(url).path for url in job["output"]]
            pictures.add(tuple(client.get(path).content for path in paths))
        assert len(pictures) == 1, "the same request gives the same images, resumed or not"
