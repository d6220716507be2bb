"""The options of `midstep rehearse`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.bench.load_options import add_what, add_when, mix_of, parsed, plans_of, settings_of
from cluster.bench.mix import PlannedRequest
from cluster.bench.option_values import (
    OneLineParser,
    read_positive,
    read_positive_count,
    read_writable_folder,
    told,
)

DESCRIPTION = (
    "Run a configuration on a local cluster whose GPUs are none, under a load, and draw what comes of it: "
    "the application itself, its autoscaling included, on simulated devices."
)


@dataclass(frozen=True)
class RehearsalOptions:
    """policies: by which replicas are counted, in one rehearsal each; empty: as the configuration says"""

    config: Path
    planned: Sequence[PlannedRequest]
    timeout_s: float
    gpus: int
    gpus_per_node: int
    policies: Sequence[str]
    slo_s: float | None
    output: Path
    settings: Mapping[str, Any]

    @property
    def nodes(self) -> list[int]:
        """GPUs of each."""
        full, rest = divmod(self.gpus, self.gpus_per_node)
        return [self.gpus_per_node] * full + [rest] * (rest > 0)


def read_options(argv: Sequence[str]) -> RehearsalOptions:
    """Exits with a line that names the option which is at fault."""
    parser = OneLineParser(prog="midstep rehearse", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("config", type=Path, help="a Serve configuration file with one application")
    cluster = parser.add_argument_group("on what").add_argument
    cluster("--gpus", type=told(read_positive_count), default=16, help="in all (%(default)s)")
    cluster("--gpus-per-node", type=told(read_positive_count), default=8, help="(%(default)s)")
    policies = "autoscaling policies to compare, in one rehearsal each (as the configuration says)"
    cluster("--policies", nargs="+", choices=("work", "requests"), default=(), help=policies)
    add_when(parser)
    add_what(parser)
    told_of = parser.add_argument_group("what is told").add_argument
    told_of("--slo-s", type=told(read_positive), help="seconds that a good answer takes at most")
    told_of(
        "--output",
        type=told(read_writable_folder),
        default="build/rehearsal",
        help="a folder (%(default)s)",
    )
    args = parsed(parser, argv)
    mix = mix_of(args)
    plans = plans_of(parser, args, mix)
    if len(plans) != 1:
        parser.error("argument --rate: one run is rehearsed; --arrivals step makes one of several rates")
    cluster_settings = {"gpus": args.gpus, "gpus_per_node": args.gpus_per_node, "slo_s": args.slo_s}
    return RehearsalOptions(
        args.config,
        plans[0],
        args.timeout,
        args.gpus,
        args.gpus_per_node,
        args.policies,
        args.slo_s,
        args.output,
        settings_of(args, mix) | cluster_settings,
    )
