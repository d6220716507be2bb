"""The options of `midstep plan`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from cluster.api_key import api_key
from cluster.bench.load import Target
from cluster.bench.load_options import LoadOptions, with_load_options
from cluster.bench.mix import PlannedRequest
from cluster.bench.option_values import NOT_NEGATIVE, POSITIVE, POSITIVE_COUNT, URL, WRITABLE_FILE
from cluster.plan.adapters import ADAPTER_OPTIONS, MadeUp
from cluster.plan.devices import Sharing
from cluster.plan.load_plan import Goal
from cluster.plan.validation import Known

R = TypeVar("R")
# Long enough for queues to settle.
DURATION_S = 600.0


@dataclass(frozen=True)
class PlanOptions:
    """load_s: seconds that a model takes to load, instead of the cost model's

    num_models: that the plans' checkpoints are shared out to; adapters: that requests have
    sharing: of devices, None for what suits the configuration; validate: the server to compare with
    """

    config: Path
    cost_model: str | None
    load_s: float | None
    num_models: int | None
    adapters: MadeUp
    plans: Sequence[Sequence[PlannedRequest]]
    goal: Goal
    sharing: Sharing | None
    known: Known
    validate: Target | None
    warmup: int
    timeout_s: float
    json: Path | None
    settings: Mapping[str, Any]


_OPTIONS = (
    click.argument("config", type=Path),
    click.option("--slo-s", type=POSITIVE, default="10", help="Longest answer in seconds."),
    click.option("--percentile", type=POSITIVE, default="95", help="Percentage of requests within that."),
    click.option("--price-per-gpu-hour", "price", type=POSITIVE, default="4", help="Dollars."),
    click.option("--max-gpus", type=POSITIVE_COUNT, default="16", help="The most GPUs to consider."),
    click.option("--json", type=WRITABLE_FILE, help="A file for all results."),
    with_load_options,
    click.option("--cost-model", help="A file of `midstep profile`, instead of model.cost_model."),
    click.option(
        "--load-s", type=NOT_NEGATIVE, help="Seconds that a model takes to load (the cost model's)."
    ),
    click.option(
        "--num-models",
        type=POSITIVE_COUNT,
        help="Models that are served. A trace's checkpoints are shared out to them; without any, the n-th "
        "model has 1/n of the first one's requests.",
    ),
    *ADAPTER_OPTIONS,
    click.option(
        "--sharing",
        type=click.Choice([str(sharing) for sharing in Sharing]),
        help="What shares a device's time (simulated: nothing; GPU: stages; CPU: machine).",
    ),
    click.option("--overhead-s", type=NOT_NEGATIVE, help="Seconds of a request outside of the stages (0)."),
    click.option("--step-overhead-s", type=NOT_NEGATIVE, help="Seconds of a step besides its forward (0)."),
    click.option("--slowdown", type=POSITIVE, help="Factor of forwards against the cost model (1)."),
    click.option(
        "--validate",
        "server",
        type=URL,
        help="A server with this configuration: measure overheads not given, and replay the load.",
    ),
)


def with_plan_options(command: Callable[[PlanOptions], R]) -> Callable[..., R]:
    """Adds the options to a command, which gets them as one object."""

    @wraps(command)
    def with_options(
        config: Path,
        slo_s: float,
        percentile: float,
        price: float,
        max_gpus: int,
        json: Path | None,
        load: LoadOptions,
        cost_model: str | None,
        load_s: float | None,
        num_models: int | None,
        num_adapters: int | None,
        adapter_rank: int,
        sharing: str | None,
        overhead_s: float | None,
        step_overhead_s: float | None,
        slowdown: float | None,
        server: str | None,
    ) -> R:
        if percentile > 100:
            raise click.BadParameter("is more than 100", param_hint="--percentile")
        if num_models is not None and load.models is None:
            load = replace(load, models={str(rank): 1 / rank for rank in range(1, num_models + 1)})
        plans, adapters = load.plans(DURATION_S), MadeUp(num_adapters, adapter_rank)
        adapters.check(plans)
        settings = load.settings(DURATION_S) | {"num_models": num_models} | adapters.settings()
        return command(
            PlanOptions(
                config=config,
                cost_model=cost_model,
                load_s=load_s,
                num_models=num_models,
                adapters=adapters,
                plans=plans,
                goal=Goal(slo_s, percentile, price, max_gpus),
                sharing=None if sharing is None else Sharing(sharing),
                known=Known(overhead_s, step_overhead_s, slowdown),
                validate=None if server is None else Target(server, api_key=api_key()),
                warmup=load.warmup,
                timeout_s=load.timeout_s,
                json=json,
                settings=settings,
            )
        )

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options
