"""Runs a configuration's application on a local cluster, with simulated devices and temporary data."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ray import serve

from cluster.ports import free_port
from serve.app import build_app
from serve.config.app import AppConfig
from serve.config.schema import ConfigError, Section
from serve.config.shares import gpu_shares

NAME = "rehearsal"
_HOST = "127.0.0.1"
# Stages without a GPU run on the head, and need not wait for room there.
_HEAD_STAGE_CPUS = 0.01
Changed = TypeVar("Changed", bound=Section)


def on_gpus(config: AppConfig) -> AppConfig:
    """The configuration with shares of GPUs, computed as for real ones if denoisers have none."""
    if config.num_gpus()["denoiser"]:
        return config
    shares = gpu_shares(config.encoder.max_replicas, config.decoder.max_replicas)
    return _changed(
        config, **{name: _changed(stage, num_gpus=shares[name]) for name, stage in config.stages.items()}
    )


def rehearsed(config: AppConfig, data_folder: str) -> AppConfig:
    """The configuration adapted to a local cluster, with the same replicas and policy. Raises ConfigError.

    Nodes there have GPUs and no CPUs, because simulated devices need none.
    """
    shares = config.num_gpus()
    stages = {
        name: _changed(
            stage, num_gpus=shares[name], num_cpus=0 if shares[name] else _HEAD_STAGE_CPUS, resources={}
        )
        for name, stage in config.stages.items()
    }
    jobs = _changed(
        config.jobs,
        data_folder=data_folder,
        database_url=None,
        object_store_url=None,
        webhook_secrets=(),
        num_cpus=_HEAD_STAGE_CPUS,
        resources={},
    )
    ingress = _changed(config.ingress, num_cpus=_HEAD_STAGE_CPUS, resources={})
    model = _changed(config.model, device="simulated")
    return _changed(config, model=model, ingress=ingress, jobs=jobs, api_keys=(), **stages)


def check_room(config: AppConfig, nodes: Sequence[int]) -> None:
    """nodes: GPUs per node. Raises ConfigError if Serve would wait for ever for its first replicas."""
    share = config.num_gpus()
    for name in config.stages:
        if share[name] > max(nodes):
            raise ConfigError(f"{name}.num_gpus: {share[name]:g} is more than a node has, {max(nodes)}")
    shares = {name: stage.min_replicas * share[name] for name, stage in config.stages.items()}
    if sum(shares.values()) > sum(nodes):
        shown = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise ConfigError(
            f"min_replicas: the stages need {sum(shares.values()):g} GPUs "
            f"({shown}) at the start, and there are {sum(nodes)} (--gpus)"
        )


def _changed(section: Changed, **values: object) -> Changed:
    return section.model_copy(update=values)


@contextmanager
def running(config: AppConfig) -> Iterator[str]:
    """The URL of the application, once every stage has its first replicas. Raises ConfigError."""
    port = free_port()
    with tempfile.TemporaryDirectory() as data_folder:
        application = build_app(rehearsed(config, data_folder))
        serve.start(
            http_options={"host": _HOST, "port": port},
            proxy_location="HeadOnly",
            logging_config={"log_level": "WARNING"},
        )
        serve.run(application, name=NAME)
        try:
            yield f"http://{_HOST}:{port}"
        finally:
            serve.shutdown()
