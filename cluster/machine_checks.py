"""Checks of the machine before serving, besides the configuration's keys: ports, the model's folder."""

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from ray.serve.schema import ServeDeploySchema

from deployments.engine.cuda_driver import cuda_of_driver, driver_problem
from serve.config.app import AppConfig
from serve.config.schema import ConfigError

_LOCATIONS = {
    "HeadOnly": "HTTP is answered on the head node",
    "EveryNode": "HTTP is answered on every node",
}


@dataclass(frozen=True)
class Finding:
    """A check and its result. "not here" may be ok on another machine, or when another program has ended."""

    item: str
    words: str
    verdict: Literal["ok", "not ok", "not here"] = "ok"

    def __str__(self) -> str:
        return f"{self.item}: {self.verdict}, {self.words}"


def read_serve_config(path: Path) -> ServeDeploySchema:
    """Reads a file that has been checked."""
    return ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))


def findings(config: ServeDeploySchema, applications: Sequence[AppConfig]) -> list[Finding]:
    """The results of all checks, after the keys have passed."""
    models = [finding for application in applications for finding in model_findings(application)]
    return [*models, location_finding(config), *port_findings(config)]


def check_machine(config: ServeDeploySchema, applications: Sequence[AppConfig], *, has_own_ray: bool) -> None:
    """Raises ConfigError if something prevents serving. Ports and GPUs are checked if Ray starts here."""
    found = [location_finding(config)]
    if has_own_ray:
        found += port_findings(config)
        for application in filter(needs_cuda, applications):
            found += device_findings(application)
    if wrong := [f"{one.item}: {one.words}" for one in found if one.verdict != "ok"]:
        raise ConfigError("\n".join(wrong))


def model_findings(config: AppConfig) -> list[Finding]:
    """The results for a model, whose folder is checked together with the keys."""
    source = config.model.source()
    in_folder, on_hub = f"all its files are in {source.path}", f"the hub is asked for {source.path} at start"
    found = Finding(f"model {config.model.id}", in_folder if source.is_folder else on_hub)
    return [found, *device_findings(config)]


def needs_cuda(config: AppConfig) -> bool:
    """Whether the model cannot take the CPU, so that its replicas wait for a GPU."""
    return config.model.device == "cuda" or (config.model.device == "auto" and config.reserves_gpus)


def device_findings(config: AppConfig) -> list[Finding]:
    """What prevents CUDA here, if the model may take it."""
    if needs_cuda(config) and cuda_of_driver() is None:
        words = "there is no NVIDIA driver (libcuda.so.1) on this machine"
        return [Finding("model.device", words, "not here")]
    if config.model.device in ("auto", "cuda") and (problem := driver_problem()):
        return [Finding("model.device", problem, "not here")]
    return []


def location_finding(config: ServeDeploySchema) -> Finding:
    location = config.proxy_location.value
    if location in _LOCATIONS:
        return Finding("proxy_location", f"{location}: {_LOCATIONS[location]}")
    words = f"{location!r} was given, with which nothing answers HTTP; allowed are {' and '.join(_LOCATIONS)}"
    return Finding("proxy_location", words, "not ok")


def port_findings(config: ServeDeploySchema) -> list[Finding]:
    host = config.http_options.host
    ports = [("http_options.port", host, config.http_options.port)]
    if config.grpc_options.grpc_servicer_functions:
        ports.append(("grpc_options.port", "0.0.0.0", config.grpc_options.port))
    found = []
    for item, address, port in ports:
        problem = port_problem(address, port)
        words = problem or f"{port} is free on {address}"
        found.append(Finding(item, words, "ok" if problem is None else "not here"))
    return found


def port_problem(host: str, port: int) -> str | None:
    """The reason why nothing can listen there, as a sentence; None if it can."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        return f"the host {host!r} has no address"
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"{port} on {host} is taken by a running program: end that, or choose another port"
            if error.errno == errno.EADDRNOTAVAIL:
                return f"the host {host!r} is no address of this machine"
            return f"{port} on {host} cannot be listened at: {error.strerror}"
    return None
