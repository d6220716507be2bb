"""Applications, each on a separate Ray."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from cluster.ports import free_port
from tests.integration.conftest import START_TIMEOUT_S, wait_until_ready


@dataclass(frozen=True)
class WholeApplication:
    """pid: of the process that leads its session"""

    client: httpx.Client
    pid: int


@contextmanager
def whole_application(
    jobs: Mapping[str, Any],
    log: Path,
    cost_model: Path | None,
    command: Sequence[str | Path] = (),
    api_keys: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, str] = {},
    port: int | None = None,
) -> Iterator[WholeApplication]:
    """Starts an application. At the end all of its processes are killed at once.

    cost_model: None to measure at its start; command: the program that runs it, if any
    port: None for a free one
    """
    port = port or free_port()
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    module = [sys.executable, "-m", "tests.integration.whole_application"]
    given = {"jobs": jobs, "api_keys": api_keys, "cost_model": cost_model and str(cost_model)}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *module, str(port), json.dumps(given)],
            env={**inherited, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, log)
        with httpx.Client(base_url=url, timeout=START_TIMEOUT_S) as client:
            yield WholeApplication(client, process.pid)
    finally:
        for left in psutil.process_iter():
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(left.pid) == process.pid:
                    left.send_signal(signal.SIGKILL)
        process.wait()
