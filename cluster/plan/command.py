"""`midstep plan`: options in, tables and sentences out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
from pydantic import TypeAdapter
from rich.console import Console

from cluster.api_key import KEY_HELP
from cluster.bench.mix import PlannedRequest
from cluster.bench.progress import counting, new_progress, run
from cluster.bench.report import summarize, warnings
from cluster.bench.report import table as summary_table
from cluster.config_errors import shown_config_errors
from cluster.plan.adapters import equipped, offering
from cluster.plan.catalog import models_of, named
from cluster.plan.devices import Sharing
from cluster.plan.load_plan import LoadPlan, check_autoscaling, plan_load
from cluster.plan.model import Model
from cluster.plan.options import PlanOptions, with_plan_options
from cluster.plan.report import comparison, num_models, options_table, over_time, recommendation, title
from cluster.plan.simulation import Simulation
from cluster.plan.stages import Overheads
from cluster.plan.validation import (
    UNLOADED_REQUESTS,
    Send,
    Validated,
    evenly,
    measured_request_s,
    measured_slowdown,
    sender,
)
from deployments.engine.model_source import load_model_info
from serve.checks import only_application
from serve.config.app import AppConfig
from serve.config.model import CostModelFile
from serve.config.schema import ConfigError


@dataclass(frozen=True)
class Written:
    """The content of the --json file. costs: the device of the costs; validated: for each load"""

    costs: str
    sharing: Sharing
    overheads: Overheads
    settings: dict[str, Any]
    loads: Sequence[LoadPlan] = ()
    validated: Sequence[Validated] = ()


_FORMAT = TypeAdapter(Written)


@click.command(epilog=KEY_HELP, context_settings={"show_default": True})
@with_plan_options
@shown_config_errors()
def plan(options: PlanOptions) -> Written:
    """Simulate how many GPUs a load needs and what they cost, or compare that with a server.

    CONFIG is a Serve configuration file with one application of Midstep.
    """
    config = only_application(options.config)
    if options.cost_model is not None:
        model_config = config.model.model_copy(update={"cost_model": options.cost_model})
        config = config.model_copy(update={"model": model_config})
    file = config.model.cost_file()
    if file is None:
        raise ConfigError(
            "model.cost_model: planning needs a file of `midstep profile`, here or as --cost-model"
        )
    if options.load_s is not None:
        file = file.model_copy(update={"cost_model": replace(file.cost_model, load_s=options.load_s)})
    models = models_of(options, config)
    with_adapters = equipped(
        named(options.plans, models), options.adapters, config, options.settings["seed"], options.validate
    )
    options = replace(options, plans=with_adapters.plans)
    model = _model(options, offering(config, with_adapters.ranks), file, with_adapters.ranks)
    console = Console()
    console.print(
        f"Simulated with the costs of {file.device}. A device's time is shared by: {model.sharing}.",
        highlight=False,
    )
    if models is not None:
        console.print(models.sentence(config.model.id), markup=False, highlight=False)
    if with_adapters.told is not None:
        console.print(with_adapters.told, markup=False, highlight=False)
    if not file.cost_model.load_s and any(num_models(planned) > 1 for planned in options.plans):
        console.print("Loads of models take no time in this cost model; --load-s gives them one.")
    if options.validate is None:
        written = _plan(options, model, file, console)
    else:
        written = _validate(options, model, file, console)
    if options.json is not None:
        options.json.write_bytes(_FORMAT.dump_json(written, indent=2) + b"\n")
        console.print(f"Written to {options.json}", markup=False, highlight=False)
    return written


def _model(options: PlanOptions, config: AppConfig, file: CostModelFile, ranks: Mapping[str, int]) -> Model:
    info = load_model_info(config.model.source())
    config.check_for(info)
    known = options.known
    overheads = Overheads(known.request_s or 0.0, known.step_s or 0.0, known.slowdown or 1.0)
    return Model(config, info, file.cost_model, options.sharing or _sharing(config), overheads, ranks)


def _sharing(config: AppConfig) -> Sharing:
    """The sharing that the application itself has on its device."""
    if config.model.device == "simulated":
        return Sharing.NOTHING
    return Sharing.STAGES if config.num_gpus()["denoiser"] else Sharing.MACHINE


def _plan(options: PlanOptions, model: Model, file: CostModelFile, console: Console) -> Written:
    loads = []
    for planned in options.plans:
        with new_progress() as progress:
            load = plan_load(
                model, planned, options.goal, lambda name, total: counting(progress, name, total)
            )
        loads.append(load)
        console.print(f"\n{title(planned)}", highlight=False)
        console.print(options_table(load, options.goal))
        for option in load.options:
            if option.is_autoscaled:
                console.print(over_time(option), highlight=False)
        console.print(recommendation(load, options.goal), highlight=False)
    return Written(file.device, model.sharing, model.overheads, dict(options.settings), loads=loads)


def _validate(options: PlanOptions, model: Model, file: CostModelFile, console: Console) -> Written:
    """Compares a prediction with a server. A machine with other users changes its speed within minutes. So
    its slowdown is measured before and after each load, and the prediction uses the mean of the two."""
    assert options.validate is not None, "only called to validate"
    height, width = model.served.default_size
    target = replace(options.validate, picture_size=(width, height))
    check_autoscaling(model)
    known = options.known
    # With autoscaling, the measuring requests would start more replicas.
    is_measured = not known.has_pace and not model.config.autoscaling_of("denoiser").is_on
    with new_progress() as progress:

        def send(name: str, total: int) -> Send:
            return sender(target, options.timeout_s, counting(progress, name, total))

        def slowdown(name: str, planned: Sequence[PlannedRequest]) -> float | None:
            total = len(evenly(model, planned))
            return measured_slowdown(model, planned, send(name, total)) if is_measured else None

        if known.request_s is None:
            alone = send("single requests", 2 * UNLOADED_REQUESTS)
            request_s = measured_request_s(replace(model, overheads=Overheads()), options.plans[0], alone)
            model = replace(model, overheads=replace(model.overheads, request_s=request_s))
        validated = []
        for planned in options.plans:
            before = slowdown("pace before", planned)
            outcomes = run(target, planned, options.warmup, options.timeout_s, "the load", progress)
            after, drift = slowdown("pace after", planned), None
            if before is not None and after is not None:
                model = model.slowed_down((before + after) / 2)
                drift = after / before - 1
            predicted = Simulation(model, None).run(planned).outcomes
            slo_s = options.goal.slo_s
            pair = summarize(predicted, slo_s), summarize(outcomes, slo_s)
            validated.append(Validated(*pair, model.overheads, drift))
    _report(validated, console)
    return Written(file.device, model.sharing, model.overheads, dict(options.settings), validated=validated)


def _report(validated: Sequence[Validated], console: Console) -> None:
    results = {
        "predicted": [one.predicted for one in validated],
        "measured": [one.measured for one in validated],
    }
    console.print(summary_table(results))
    console.print(comparison(validated))
    told = warnings(results)
    for one in validated:
        overheads = one.overheads
        step_s = max(0.0, overheads.step_s)  # a plan takes no negative value
        console.print(
            f"Measured: --overhead-s {overheads.request_s:.4f} --step-overhead-s {step_s:.5f} "
            f"--slowdown {overheads.slowdown:.3f}",
            highlight=False,
        )
        if not one.is_steady:
            told.append(f"Steps took {1 + (one.drift or 0):.2f} times as long after the load as before it.")
    for warning in told:
        console.print(f"Warning: {warning}", style="bold red", markup=False, highlight=False)
