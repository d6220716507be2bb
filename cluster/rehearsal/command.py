"""`midstep rehearse`: runs one or more rehearsals of a load on a local cluster, and writes their results."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
from pydantic import TypeAdapter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cluster.bench.checkpoints import mapped
from cluster.bench.mix import PlannedRequest
from cluster.bench.progress import counting, new_progress
from cluster.bench.report import summarize, table, warnings
from cluster.bench.results import Results, new_results
from cluster.config_errors import shown_config_errors
from cluster.local_cluster import local_cluster
from cluster.plan.adapters import equipped, offering
from cluster.plan.catalog import catalog_models
from cluster.plan.devices import Sharing
from cluster.plan.model import Model
from cluster.plan.report import num_models
from cluster.plan.stages import Overheads
from cluster.rehearsal.adapters import with_adapter_files
from cluster.rehearsal.application import check_room, on_gpus
from cluster.rehearsal.catalog import with_models
from cluster.rehearsal.chart import chart
from cluster.rehearsal.options import RehearsalOptions, with_rehearsal_options
from cluster.rehearsal.rehearsal import Rehearsal
from cluster.rehearsal.rehearsal import rehearse as rehearse_load
from cluster.rehearsal.series import Series, series_of
from deployments.engine.model_source import load_model_info
from serve.checks import only_application
from serve.config.app import AppConfig
from serve.config.model import CostModelFile
from serve.config.schema import ConfigError


@dataclass(frozen=True)
class Written:
    """The content of rehearsal.json. devices: the devices whose time is simulated"""

    devices: str
    results: Sequence[Results]
    gpu_seconds: Mapping[str, float]
    series: Mapping[str, Series]


_FORMAT = TypeAdapter(Written)


@click.command(context_settings={"show_default": True})
@with_rehearsal_options
@shown_config_errors()
def rehearse(options: RehearsalOptions) -> None:
    """Run a configuration under a load on a local cluster with simulated GPUs, and draw the results.

    CONFIG is a Serve configuration file with one application of Midstep. It runs with its own replicas,
    limits and autoscaling on simulated devices, without API keys and custom resources.
    """
    config = on_gpus(only_application(options.config))
    check_room(config, options.nodes)
    console = Console()
    devices = f"simulated devices: {_cost_file(config).device}"
    console.print(f"{options.gpus} simulated GPUs; {devices}", markup=False, highlight=False)
    options = _with_names_of_catalog(options, config, console)
    given = equipped([options.planned], options.adapters, config, options.settings["seed"])
    options = replace(options, planned=given.plans[0])
    if given.told is not None:
        console.print(given.told, markup=False, highlight=False)
    made_up = {} if options.adapters.number is None and config.adapters.folder is not None else given.ranks
    with (
        with_adapter_files(config, made_up) as equipped_config,
        with_models(equipped_config, options.planned) as served,
    ):
        if served is not equipped_config:
            number = num_models(options.planned)
            console.print(f"{number} checkpoints are served as models of their own like {config.model.id}.")
        rehearsals = _rehearsed(options, served)
    summaries = {name: summarize(one.outcomes, options.slo_s) for name, one in rehearsals.items()}
    runs = {name: [summary] for name, summary in summaries.items()}
    console.print(table(runs))
    console.print(_paid(rehearsals, options.slo_s))
    for warning in warnings(runs):
        console.print(f"Warning: {warning}", style="bold red", markup=False, highlight=False)
    work_s = _work_s(config, given.ranks)
    series = {name: series_of(one, work_s) for name, one in rehearsals.items()}
    gpu_seconds = {name: one.gpu_seconds() for name, one in rehearsals.items()}
    results = [new_results(name, options.settings, [summary]) for name, summary in summaries.items()]
    _write(Written(devices, results, gpu_seconds, series), options.output / "rehearsal.json")
    chart(f"{config.model.id}, {options.gpus} GPUs, {devices}", series, options.output / "rehearsal.png")
    console.print(f"Written to {options.output}", markup=False, highlight=False)


def _with_names_of_catalog(
    options: RehearsalOptions, config: AppConfig, console: Console
) -> RehearsalOptions:
    """The options with a trace's checkpoints as models of the configuration's catalog, if it has one."""
    served = catalog_models(config)
    if served is None or options.settings["arrivals"] != "trace":
        return options
    models = mapped([options.planned], served)
    if models is None:
        return options
    console.print(models.sentence(config.model.id), markup=False, highlight=False)
    return replace(options, planned=models.apply(options.planned))


def _rehearsed(options: RehearsalOptions, config: AppConfig) -> dict[str, Rehearsal]:
    configs = {policy: _by_policy(config, policy) for policy in options.policies} or {"rehearsal": config}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    rehearsals = {}
    with local_cluster() as cluster, new_progress() as progress:
        starting = progress.add_task("GPU nodes", total=len(options.nodes), counts="")
        for gpus in options.nodes:
            cluster.add_node(num_gpus=gpus, num_cpus=0)
            progress.advance(starting)
        for name, policed in configs.items():
            on_outcome = counting(progress, name, len(options.planned))
            rehearsals[name] = rehearse_load(policed, options.planned, options.timeout_s, on_outcome)
    return rehearsals


def _by_policy(config: AppConfig, policy: str) -> AppConfig:
    stages = {}
    for name in ("encoder", "denoiser", "decoder"):
        stage = getattr(config, name)
        autoscaling = stage.autoscaling.model_copy(update={"policy": policy})
        stages[name] = stage.model_copy(update={"autoscaling": autoscaling})
    return config.model_copy(update=stages)


def _paid(rehearsals: Mapping[str, Rehearsal], slo_s: float | None) -> Table:
    drawn = Table("system", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("GPU-seconds\npaid for", "per image", "refused, failed\nor late"):
        drawn.add_column(head, justify="right")
    for name, rehearsal in rehearsals.items():
        paid, outcomes = rehearsal.gpu_seconds(), rehearsal.outcomes
        good = [
            one for one in outcomes if one.answer.num_images and (slo_s is None or one.latency_s <= slo_s)
        ]
        num_images = sum(one.answer.num_images for one in outcomes)
        per_image = f"{paid / num_images:.2f}" if num_images else ""
        drawn.add_row(name, f"{paid:.0f}", per_image, f"{len(outcomes) - len(good)} of {len(outcomes)}")
    return drawn


def _work_s(config: AppConfig, ranks: Mapping[str, int]) -> Callable[[PlannedRequest], float]:
    """Device-seconds of denoising a request."""
    cost = _cost_file(config).cost_model
    info = load_model_info(config.model.source())
    return Model(offering(config, ranks), info, cost, Sharing.NOTHING, Overheads(), ranks).work_s


def _cost_file(config: AppConfig) -> CostModelFile:
    """The configuration's cost file. Raises ConfigError if it has none."""
    if (file := config.model.cost_file()) is None:
        raise ConfigError(
            "model.cost_model: is needed for the time of simulated devices; cluster/devices has some"
        )
    return file


def _write(written: Written, path: Path) -> None:
    path.write_bytes(_FORMAT.dump_json(written, indent=2) + b"\n")
