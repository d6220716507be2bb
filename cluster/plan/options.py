"""The options of `midstep plan`."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.bench.load import Target
from cluster.bench.load_options import add_what, add_when, mix_of, parsed, plans_of, settings_of
from cluster.bench.mix import PlannedRequest
from cluster.bench.option_values import (
    OneLineParser,
    read_not_negative,
    read_positive,
    read_positive_count,
    read_url,
    read_writable_file,
    told,
)
from cluster.bench.options import KEY_HELP, KEY_VARIABLE
from cluster.plan.devices import Sharing
from cluster.plan.load_plan import Goal
from cluster.plan.validation import Known

DESCRIPTION = "Say how many GPUs a load needs and what they cost, simulated; or hold that against a server."
# Long enough for queues to show what they come to.
DURATION_S = 600.0


@dataclass(frozen=True)
class PlanOptions:
    """sharing: None for what suits the configuration; validate: the server that is held against"""

    config: Path
    cost_model: str | None
    plans: Sequence[Sequence[PlannedRequest]]
    goal: Goal
    sharing: Sharing | None
    known: Known
    validate: Target | None
    warmup: int
    timeout_s: float
    json: Path | None
    settings: Mapping[str, Any]


def read_options(argv: Sequence[str]) -> PlanOptions:
    """What the command line asks for; exits with a line that names the option which is at fault."""
    parser = _parser()
    args = parsed(parser, argv)
    if args.percentile > 100:
        parser.error("argument --percentile: is more than 100")
    if args.arrivals != "trace" and args.duration is None:
        args.duration = DURATION_S
    mix = mix_of(args)
    return PlanOptions(
        config=args.config,
        cost_model=args.cost_model,
        plans=plans_of(parser, args, mix),
        goal=Goal(args.slo_s, args.percentile, args.price_per_gpu_hour, args.max_gpus),
        sharing=args.sharing,
        known=Known(args.overhead_s, args.step_overhead_s, args.slowdown),
        validate=None
        if args.validate is None
        else Target(args.validate, api_key=os.environ.get(KEY_VARIABLE)),
        warmup=args.warmup,
        timeout_s=args.timeout,
        json=args.json,
        settings=settings_of(args, mix),
    )


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="midstep plan", description=DESCRIPTION, epilog=KEY_HELP, allow_abbrev=False)
    parser.add_argument("config", type=Path, help="a Serve configuration file with one application of ours")
    wanted = parser.add_argument_group("what is wanted").add_argument
    wanted("--slo-s", type=told(read_positive), default=10.0, help="seconds of an answer (%(default)s)")
    wanted("--percentile", type=told(read_positive), default=95.0, help="of requests (%(default)s)")
    wanted("--price-per-gpu-hour", type=told(read_positive), default=4.0, help="%(default)s")
    wanted("--max-gpus", type=told(read_positive_count), default=16, help="to consider (%(default)s)")
    wanted("--json", type=told(read_writable_file), help="a file for all that came out")
    add_when(parser)
    add_what(parser)
    _add_machine(parser)
    return parser


def _add_machine(parser: argparse.ArgumentParser) -> None:
    machine = parser.add_argument_group("what the machine is like").add_argument
    machine("--cost-model", help="a file of `midstep profile`, instead of model.cost_model")
    machine(
        "--sharing",
        type=Sharing,
        choices=list(Sharing),
        help="what shares a device's time (simulated: nothing; a GPU: stages; a CPU: machine)",
    )
    machine("--overhead-s", type=told(read_not_negative), help="of a request, outside of the stages (0)")
    machine("--step-overhead-s", type=told(read_not_negative), help="of a step, besides its forward (0)")
    machine("--slowdown", type=told(read_positive), help="of forwards, against the cost model (1)")
    machine(
        "--validate",
        type=told(read_url),
        metavar="URL",
        help="a server of this configuration: measure there what is not given, and replay the load",
    )
