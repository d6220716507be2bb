"""The options of `midstep rehearse`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from cluster.bench.load_options import LoadOptions, with_load_options
from cluster.bench.mix import PlannedRequest
from cluster.bench.option_values import POSITIVE, POSITIVE_COUNT, WRITABLE_FOLDER
from cluster.plan.adapters import ADAPTER_OPTIONS, MadeUp

R = TypeVar("R")


@dataclass(frozen=True)
class RehearsalOptions:
    """policies: autoscaling policies, one rehearsal each; empty: the configuration's policy

    adapters: that requests have
    """

    config: Path
    planned: Sequence[PlannedRequest]
    adapters: MadeUp
    timeout_s: float
    gpus: int
    gpus_per_node: int
    policies: Sequence[str]
    slo_s: float | None
    output: Path
    settings: Mapping[str, Any]

    @property
    def nodes(self) -> list[int]:
        """GPUs of each node."""
        full, rest = divmod(self.gpus, self.gpus_per_node)
        return [self.gpus_per_node] * full + [rest] * (rest > 0)


_OPTIONS = (
    click.argument("config", type=Path),
    click.option("--gpus", type=POSITIVE_COUNT, default="16", help="Number of GPUs."),
    click.option("--gpus-per-node", type=POSITIVE_COUNT, default="8", help="GPUs per node."),
    click.option(
        "--policies",
        type=click.Choice(("work", "requests")),
        nargs=2,
        help="Autoscaling policies to compare, one rehearsal each (the configuration's).",
    ),
    with_load_options,
    *ADAPTER_OPTIONS,
    click.option("--slo-s", type=POSITIVE, help="Longest good answer in seconds."),
    click.option("--output", type=WRITABLE_FOLDER, default="build/rehearsal", help="Output folder."),
)


def with_rehearsal_options(command: Callable[[RehearsalOptions], R]) -> Callable[..., R]:
    """Adds the options to a command, which gets them as one object."""

    @wraps(command)
    def with_options(
        config: Path,
        gpus: int,
        gpus_per_node: int,
        policies: Sequence[str] | None,
        load: LoadOptions,
        num_adapters: int | None,
        adapter_rank: int,
        slo_s: float | None,
        output: Path,
    ) -> R:
        plans = load.plans()
        if len(plans) != 1:
            message = "only one run can be rehearsed; use --arrivals step for several rates"
            raise click.BadParameter(message, param_hint="--rate")
        adapters = MadeUp(num_adapters, adapter_rank)
        adapters.check(plans)
        cluster = {"gpus": gpus, "gpus_per_node": gpus_per_node, "slo_s": slo_s} | adapters.settings()
        return command(
            RehearsalOptions(
                config,
                plans[0],
                adapters,
                load.timeout_s,
                gpus,
                gpus_per_node,
                policies or (),
                slo_s,
                output,
                load.settings() | cluster,
            )
        )

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options
