"""`midstep run`: serves a configuration file until it is told to end, and then ends in order.

It does what Ray's `serve run` does, and three things that does not: SIGTERM ends it as Ctrl-C does, requests
under way are answered first, and an application that cannot start ends it with the reason.
"""

import re
import signal
import sys
import threading
import time
from importlib.machinery import PathFinder
from pathlib import Path
from types import FrameType

import ray
import yaml
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema

import deployments
from serve import __path__ as serve_path
from serve.config.schema import ConfigError
from serve.ray_internals import deploy, num_ongoing_requests, serve_details

_LOOK_INTERVAL_S = 1.0
_DRAIN_INTERVAL_S = 0.2
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception|Exit)\b", re.MULTILINE)  # as tracebacks end
# Midstep's packages that replicas import, and where they are.
_PACKAGES = {"serve": Path(serve_path[0]), "deployments": Path(deployments.__path__[0])}


class StartError(Exception):
    """An application could not be started; the message has the last error of its replicas."""


def check_nothing_in_the_way(folder: Path) -> None:
    """Raises ConfigError where something in the folder would be imported in place of a package of Midstep.

    Ray's workers look for modules in the folder that their driver was started in before they look elsewhere.
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


def serve_file(path: Path) -> None:
    """Serves the applications of a checked file until SIGTERM or SIGINT. Raises StartError."""
    config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    stop = threading.Event()
    _set_on_signals(stop)
    ray.init(namespace="serve")
    _set_on_signals(stop)  # again: Ray has put handlers of its own in their place
    try:
        serve.start(
            proxy_location=config.proxy_location,
            http_options=config.http_options.model_dump(),
            grpc_options=gRPCOptions(**config.grpc_options.model_dump()),
            controller_options=config.controller_options,
        )
        if not stop.is_set():
            deploy(config)
            _wait_until_running(config, stop)
        stop.wait()
        _drain(config)
    finally:
        serve.shutdown()
        ray.shutdown()


def _set_on_signals(stop: threading.Event) -> None:
    """The first signal ends in order, a second one at once."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)


def _wait_until_running(config: ServeDeploySchema, stop: threading.Event) -> None:
    """Returns when it is told to stop, too. Raises StartError."""
    names = {application.name for application in config.applications}
    while not stop.wait(_LOOK_INTERVAL_S):
        statuses = serve.status().applications
        known = {name: statuses[name] for name in names if name in statuses}
        for name, application in known.items():
            if application.status == "DEPLOY_FAILED":
                messages = [deployment.message for deployment in application.deployments.values()]
                raise StartError(f"{name} cannot be started: {last_error([application.message, *messages])}")
        if len(known) == len(names) and all(one.status == "RUNNING" for one in known.values()):
            return


def last_error(messages: list[str]) -> str:
    """The last error in what Serve says of an application and its deployments, or else what it says."""
    for message in reversed(messages):
        if errors := list(_ERROR.finditer(message)):
            return message[errors[-1].start() :].strip()
    return "; ".join(message for message in messages if message)


def _drain(config: ServeDeploySchema) -> None:
    """Takes no new requests, and waits for those under way as long as their deployment's configuration says.

    Serve's own shutdown ends its proxies at once, as it does stages that have nothing to do at the moment and
    are needed next.
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
    except (RayError, ValueError):  # a replica that has just gone has none
        return 0
