"""The compared systems, and how each is started and stopped."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks.peers.environment import ROOT, peers_python, project_python
from benchmarks.peers.images_api import PATH
from cluster.ports import free_port
from cluster.ray_environment import EDGE

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
# HTTP proxies in front of replicas on Ray, and the variables that select them.
PROXIES = {
    "serve": {"RAY_SERVE_ENABLE_HA_PROXY": "0"},
    "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"},
}
_PROXY = PROXIES["haproxy"]  # used in production, and better for all systems
_FIRST_IMAGE = {"prompt": "a red star on a blue background", "seed": 1, "num_inference_steps": 4}


@dataclass(frozen=True)
class System:
    """title: in tables; python: interpreter of its environment; arguments: of the interpreter; variables: of
    the process's environment"""

    title: str
    python: Callable[[], Path]
    arguments: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)


def on_ray(title: str, module: str, variables: Mapping[str, str]) -> System:
    arguments = ("-m", "benchmarks.peers.ray_host", module, "--threads", "{threads}", "--port", "{port}")
    return System(title, project_python, arguments, variables)


def midstep(module: str, proxy: str = "haproxy") -> System:
    """A module's application, behind Midstep's edge before Serve's proxy. proxy: one of PROXIES"""
    return on_ray("Midstep", module, EDGE | PROXIES[proxy])


_LITSERVE = ("-m", "benchmarks.peers.litserve_server", "--threads", "{threads}", "--port", "{port}")
_BENTOML = ("-m", "bentoml", "serve", "benchmarks.peers.bentoml_service:Images", "--host", "127.0.0.1")

SYSTEMS: Mapping[str, System] = {
    "midstep": midstep("benchmarks.peers.midstep_app"),
    "ray_serve_pipeline": on_ray("Ray Serve, a pipeline", "benchmarks.peers.ray_serve_pipeline", _PROXY),
    "ray_serve_batch": on_ray("Ray Serve, @serve.batch", "benchmarks.peers.ray_serve_batch", _PROXY),
    "litserve": System("LitServe", peers_python, _LITSERVE),
    "bentoml": System("BentoML", peers_python, (*_BENTOML, "--port", "{port}")),
}


@contextmanager
def running(system: System, num_threads: int) -> Iterator[str]:
    """The system's URL, once it answers. Raises RuntimeError, with the end of its log, if it never does."""
    port = free_port()
    arguments = [text.format(port=port, threads=num_threads) for text in system.arguments]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "PEER_THREADS": str(num_threads),
        "BENTOML_DO_NOT_TRACK": "True",
        **system.variables,
    }
    # Variables of the environment that would choose threads or a cluster instead of us.
    environment.pop("OMP_NUM_THREADS", None)
    environment.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [system.python(), *arguments],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            if not _answers(url, process):
                log.seek(0)
                raise RuntimeError(f"{system.title} did not start:\n{log.read()[-4000:].decode()}")
            yield url
        finally:
            _stop(process)


def _answers(url: str, process: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.post(url + PATH, json=_FIRST_IMAGE, timeout=120).status_code == 200:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        print("did not stop in time and is killed", flush=True)
    for left in psutil.process_iter():  # Ray's workers have their own process groups, but stay in the session
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(left.pid) == process.pid:
                left.kill()
    process.wait()
