"""`midstep run`: serves a configuration file until it is told to end, and then ends in order.

It does what `serve run` of Ray does, and three things that does not: SIGTERM ends it as Ctrl-C does, requests
under way are answered first, and an application that cannot start ends it with the reason.
"""

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
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema

from serve.config.schema import ConfigError
from serve.ray_internals import deploy, serve_details

_LOOK_INTERVAL_S = 1.0
_DRAIN_INTERVAL_S = 0.2
_PACKAGES = ("serve", "deployments")
# What Serve says in front of the last error of a replica that cannot be constructed.
_BEFORE_ERROR = "Error:\n"


class StartError(Exception):
    """An application could not be started; the message has the last error of its replicas."""


def check_nothing_in_the_way(folder: Path) -> None:
    """Raises ConfigError where a file of the folder would be imported in place of a package of Midstep.

    Ray's workers look for modules in the folder that their driver was started in before they look elsewhere.
    """
    for name in _PACKAGES:
        ours = Path(str(sys.modules[name].__file__)).parent if name in sys.modules else None
        found = PathFinder.find_spec(name, [str(folder), *sys.path])
        if found is None:
            continue
        place = Path(found.origin or next(iter(found.submodule_search_locations or [""])))
        package = place.parent if place.name == "__init__.py" else place
        if package.is_relative_to(folder) and package != ours:
            raise ConfigError(
                f"{package} is in the way of Midstep's package {name!r}, for which Ray looks in the folder that "
                "it is started in: rename it, or start in another folder"
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
    """Raises StartError."""
    names = {application.name for application in config.applications}
    while not stop.wait(_LOOK_INTERVAL_S):
        applications = {name: one for name, one in serve.status().applications.items() if name in names}
        for name, application in applications.items():
            if application.status == "DEPLOY_FAILED":
                messages = [one.message for one in application.deployments.values()]
                raise StartError(f"{name} cannot be started: {_reason([*messages, application.message])}")
        if len(applications) == len(names) and all(
            application.status == "RUNNING" for application in applications.values()
        ):
            return


def _reason(messages: list[str]) -> str:
    """The last error of a replica, or else what Serve says."""
    for message in messages:
        if _BEFORE_ERROR in message:
            return message.partition(_BEFORE_ERROR)[2].strip()
    return next((message for message in reversed(messages) if message), "Serve does not say why")


def _drain(config: ServeDeploySchema) -> None:
    """Takes no new requests and waits for those under way, as long as their deployment's configuration says.

    Serve's own shutdown ends its proxies at once, and stages that have nothing to do while others still need
    them.
    """
    ingresses = {name: _ingress(name) for name in serve.status().applications if _is_ours(name, config)}
    if not ingresses:
        return
    print("Requests under way are finished first; a second signal ends at once.", file=sys.stderr)
    hidden = [one.model_copy(update={"route_prefix": None}) for one in config.applications]
    deploy(config.model_copy(update={"applications": hidden}))
    details = serve_details()["applications"]
    ends = {
        name: time.monotonic() + _timeout_s(details[name]["deployments"][ingress])
        for name, ingress in ingresses.items()
    }
    while any(
        time.monotonic() < ends[name] and _is_busy(name, ingress) for name, ingress in ingresses.items()
    ):
        time.sleep(_DRAIN_INTERVAL_S)
