"""`midstep run`: serves a configuration file until it is told to stop, and then shuts down cleanly.

It does what Ray's `serve run` does, and more. It shows the progress of the start, SIGTERM ends it like
Ctrl-C, running requests are answered first, and if an application cannot start it ends with the reason.
"""

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Collection, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema
from rich.console import Console

import deployments
from cluster.ready import base_url, ready_block, status_of, token_command
from cluster.start import Stage, StartDisplay, say, stage_of
from cluster.worker_logs import Line, WorkerLogs
from deployments.progress import MEASURING
from serve import __path__ as serve_path
from serve.config.schema import ConfigError
from serve.ray_internals import deploy, num_ongoing_requests, serve_details, take_worker_logs

_LOOK_INTERVAL_S = 0.2
_DRAIN_INTERVAL_S = 0.2
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception|Exit)\b", re.MULTILINE)  # like the end of a traceback
# Midstep's packages that replicas import, and their folders.
_PACKAGES = {"serve": Path(serve_path[0]), "deployments": Path(deployments.__path__[0])}
_LOG_NAME = "midstep.log"


class StartError(Exception):
    """An application could not be started. The message has the last error of its replicas."""


def check_nothing_in_the_way(folder: Path) -> None:
    """Raises ConfigError if a module in the folder would be imported instead of a package of Midstep.

    Ray's workers look for modules first in the folder in which their driver was started.
    """
    for name, ours in _PACKAGES.items():
        found = PathFinder.find_spec(name, [str(folder), *sys.path])
        if found is None:
            continue
        place = Path(next(iter(found.submodule_search_locations or ()), found.origin or "")).resolve()
        if place.parent == folder.resolve() and place != ours.resolve():
            raise ConfigError(
                f"{place} is in the way of Midstep's package {name!r}, which Ray looks for in the folder "
                "that it is started in: rename it, or start in another folder"
            )


def serve_config(config: ServeDeploySchema, address: str | None) -> None:
    """Serves applications until SIGTERM or SIGINT. Raises StartError.

    address: of the Ray to join; None to start one, which ends with this process
    """
    begun_at = time.monotonic()
    console = Console(stderr=True)
    stop, drained, is_urgent = threading.Event(), threading.Event(), False
    _set_on_signals(stop)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # for this process; workers have their own
    with StartDisplay(console) as display:
        display.show(Stage(f"Joining the Ray at {address}" if address else "Starting Ray"))
        context = _connected(address)
        _set_on_signals(stop)  # again, because Ray has replaced the handlers
        try:
            _check_nothing_runs(address)
            measuring: set[str] = set()
            logs = WorkerLogs(
                Path(context.address_info["session_dir"]) / "logs" / _LOG_NAME,
                # After that Ray and Serve report their own end as errors.
                show=lambda line: None if drained.is_set() else _show(console, line),
                see=lambda line: measuring.add(line.source) if line.message == MEASURING else None,
            )
            take_worker_logs(logs.take)
            try:
                _start(config)
                if not stop.is_set():
                    deploy(config)
                    urls = _wait_until_ready(config, display, measuring, stop)
                    display.end()
                    if not stop.is_set():
                        block = ready_block(urls, context.dashboard_url, token_command(os.environ), logs.path)
                        say(console, f"Ready after {time.monotonic() - begun_at:.0f} s.", style="bold green")
                        say(console, "\n".join(block))
                stop.wait()
                _drain(config)
            except KeyboardInterrupt:
                is_urgent = True
                raise
            finally:
                drained.set()
                if address is not None or not is_urgent:  # our own Ray ends everything at once
                    serve.shutdown()
        finally:
            ray.shutdown()
    say(console, "Stopped.")


def _connected(address: str | None) -> Any:
    """Ray's context, of the Ray at an address or of a new one. Raises StartError if the address is wrong."""
    if address is None:
        return ray.init("local", namespace="serve", logging_level=logging.WARNING)
    try:
        if "://" in address:
            raise ValueError("it must be HOST:PORT as `ray start` prints it, such as 10.0.0.1:6379, or auto")
        return ray.init(address, namespace="serve", logging_level=logging.WARNING)
    except (ValueError, ConnectionError, RuntimeError) as error:
        raise StartError(f"RAY_ADDRESS: the Ray at {address!r} cannot be joined: {error}") from error


def _show(console: Console, line: Line) -> None:
    """Shows workers' warnings and errors, which the log also has."""
    say(console, f"({line.source}) {line.text}", style="yellow" if line.level == "WARNING" else "red")


def _check_nothing_runs(address: str | None) -> None:
    """Raises StartError. Serve would end its applications that are not in the given configuration."""
    if running := sorted(serve.status().applications):
        raise StartError(
            f"the Ray at {address} (RAY_ADDRESS) serves already: {', '.join(running)}. To serve here would "
            "end that: unset RAY_ADDRESS to start a Ray for this application, or end the other one first"
        )


def _start(config: ServeDeploySchema) -> None:
    """Starts Serve, without applications."""
    serve.start(
        proxy_location=config.proxy_location,
        http_options=config.http_options.model_dump(),
        grpc_options=gRPCOptions(**config.grpc_options.model_dump()),
        controller_options=config.controller_options,
    )


def _set_on_signals(stop: threading.Event) -> None:
    """The first signal shuts down cleanly, a second one at once."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)


def _wait_until_ready(
    config: ServeDeploySchema, display: StartDisplay, measuring: Collection[str], stop: threading.Event
) -> dict[str, str]:
    """Returns the applications' URLs, or those so far when told to stop. Raises StartError."""
    names = {application.name for application in config.applications}
    urls: dict[str, str] = {}
    while not stop.is_set():
        details = serve_details()
        known = [one for name, one in details["applications"].items() if name in names]
        for application in known:
            if application["status"] == "DEPLOY_FAILED":
                messages = [one["message"] for one in application["deployments"].values()]
                reason = last_error([application["message"], *messages])
                raise StartError(f"{application['name']} cannot be started: {reason}")
        display.show(stage_of(known, measuring))
        if len(known) == len(names) and all(one["status"] == "RUNNING" for one in known):
            urls = _urls(config, details)
            # Serve's proxy learns of an application a little later, and may know that it is not ready.
            if all(status_of(f"{url}/readyz") not in (None, 503) for url in urls.values()):
                break
        stop.wait(_LOOK_INTERVAL_S)
    return urls


def _urls(config: ServeDeploySchema, details: Mapping[str, Any]) -> dict[str, str]:
    """The URLs of the applications with HTTP routes, by name."""
    proxies = [proxy["node_ip"] for proxy in details["proxies"].values() if proxy.get("node_ip")]
    is_remote = bool(os.environ.get("RAY_ADDRESS")) and bool(proxies)
    base = base_url(config.http_options, proxies[0] if is_remote else "127.0.0.1")
    prefixes = {name: one["route_prefix"] for name, one in details["applications"].items()}
    return {name: base + prefix.rstrip("/") for name, prefix in prefixes.items() if prefix is not None}


def last_error(messages: list[str]) -> str:
    """The last error in Serve's messages on an application and its deployments, or else the messages."""
    for message in reversed(messages):
        if errors := list(_ERROR.finditer(message)):
            return message[errors[-1].start() :].strip()
    return "; ".join(message for message in messages if message)


def _drain(config: ServeDeploySchema) -> None:
    """Stops taking requests, and waits for running ones as long as their deployment's configuration says.

    Serve's own shutdown ends its proxies at once, and also stages that are idle at the moment but needed
    next.
    """
    names = {application.name for application in config.applications}
    statuses = serve.status().applications
    busy = {
        name: serve.get_app_handle(name).deployment_name
        for name in names
        if name in statuses and statuses[name].status in ("RUNNING", "UNHEALTHY")
    }
    if not busy:
        return
    print("Requests under way are answered first; a second signal ends at once.", file=sys.stderr)
    unreachable = [one.model_copy(update={"route_prefix": None}) for one in config.applications]
    deploy(config.model_copy(update={"applications": unreachable}))
    ends = {name: time.monotonic() + _timeout_s(name, ingress) for name, ingress in busy.items()}
    while busy:
        time.sleep(_DRAIN_INTERVAL_S)
        busy = {
            name: ingress
            for name, ingress in busy.items()
            if time.monotonic() < ends[name] and _num_ongoing(name, ingress)
        }


def _timeout_s(application: str, deployment: str) -> float:
    details = serve_details()["applications"][application]["deployments"][deployment]
    return float(details["deployment_config"]["graceful_shutdown_timeout_s"])


def _num_ongoing(application: str, deployment: str) -> int:
    try:
        return num_ongoing_requests(application, deployment)
    except (RayError, ValueError):  # a replica that has just stopped has none
        return 0
