"""The options that say what load there is, when and of what: of every command that makes or plans one."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from cluster.bench import arrivals
from cluster.bench.mix import Mix, PlannedRequest, plan, plan_trace, read_mix, read_size, read_weights
from cluster.bench.option_values import (
    OneLineParser,
    read_count,
    read_not_negative,
    read_positive,
    read_positive_count,
    read_positives,
    read_prompts,
    told,
)

T = TypeVar("T")
DEFAULT_DURATION_S = 60.0
# What a file of results tells of the command line: no paths, no hosts.
SETTINGS = ["arrivals", "rate", "duration", "speed_up", "start", "warmup", "timeout", "seed"]


def add_when(parser: argparse.ArgumentParser) -> None:
    times = parser.add_argument_group("when").add_argument
    kinds = "(poisson; with --trace: trace)"
    times("--arrivals", choices=("poisson", "constant", "step", "trace"), help=kinds)
    rates = "requests/s; several are runs, but with --arrivals step the steps of one run"
    times("--rate", "--rates", type=told(read_positives), help=rates)
    times("--duration", type=told(read_positive), help="seconds of a run or step (60; a trace: to its end)")
    times("--trace", type=Path, help="CSV or CSV.GZ with arrival_s, num_images, num_inference_steps")
    times("--speed-up", type=told(read_positives), help="times as fast as it came (1); several are runs")
    times("--start", type=told(read_not_negative), help="second of the trace to start at (0)")
    times("--warmup", type=told(read_count), default=0, help="requests before each run, which do not count")
    times("--timeout", type=told(read_positive), default=300.0, help="seconds from due (%(default)s)")


def parsed(parser: OneLineParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of a parser with these options; exits as parsers do."""
    args = parser.parse_args(argv)
    if args.arrivals is None:
        args.arrivals = "poisson" if args.trace is None else "trace"
    return args


def add_what(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_argument_group("what is asked for, as VALUE:WEIGHT,...").add_argument
    asked("--mix", type=file_of(read_mix), default=Mix(), help="all of it as a YAML or JSON file")
    asked("--prompts", type=file_of(read_prompts), help="a file with a prompt a line")
    asked("--sizes", type=_weights(read_size), help="such as 512x512:3,768x768:1")
    asked("--steps", type=_weights(read_positive_count), dest="num_inference_steps", help="4:20,20:40,50:10")
    asked("--guidance-scales", type=_weights(read_not_negative), help="1:1,5:3")
    asked("--samplers", type=_weights(str), help="'Euler a:1,DPM++ 2M:2'")
    asked("--num-images", type=_weights(read_positive_count), help="of one request: 1:3,4:1")
    asked("--seed", type=told(read_count), default=0, help="of times and requests (%(default)s)")


def file_of(read: Callable[[Path], T]) -> Callable[[str], T]:
    return told(lambda text: read(Path(text)))


def _weights(read: Callable[[str], T]) -> Callable[[str], dict[T, float]]:
    return told(lambda text: read_weights(text, read))


def mix_of(args: argparse.Namespace) -> Mix:
    """The file's, or the default, with what the other options say."""
    mix: Mix = args.mix
    given = {field.name: getattr(args, field.name) for field in fields(Mix)}
    return replace(mix, **{name: value for name, value in given.items() if value is not None})


def settings_of(args: argparse.Namespace, mix: Mix) -> dict[str, Any]:
    """For the record."""
    sizes = {size and f"{size[0]}x{size[1]}": weight for size, weight in mix.sizes.items()}
    described = asdict(mix) | {"sizes": sizes, "prompts": len(mix.prompts)}
    return {name: getattr(args, name) for name in SETTINGS} | {"mix": described}


def plans_of(parser: OneLineParser, args: argparse.Namespace, mix: Mix) -> list[list[PlannedRequest]]:
    """One for each run; exits where there is none to make."""
    seed, duration_s = args.seed, args.duration or DEFAULT_DURATION_S
    if args.arrivals == "trace":
        plans = [plan_trace(times, mix, seed) for times in _traces(parser, args)]
    else:
        for name in ("trace", "speed_up", "start"):
            if getattr(args, name) is not None:
                parser.error(f"argument --{name.replace('_', '-')}: needs --arrivals trace")
        if args.rate is None:
            parser.error("argument --rate: is required")
        if args.arrivals == "poisson":
            runs = [arrivals.poisson(rate, duration_s, seed) for rate in args.rate]
        elif args.arrivals == "constant":
            runs = [arrivals.constant(rate, duration_s) for rate in args.rate]
        else:
            runs = [arrivals.steps([(rate, duration_s) for rate in args.rate], seed)]
        plans = [plan(times, mix, seed) for times in runs]
    if not all(plans):
        parser.error(f"argument {'--start' if args.start else '--duration'}: no request falls due")
    return plans


def _traces(parser: OneLineParser, args: argparse.Namespace) -> list[list[arrivals.TraceArrival]]:
    if args.rate is not None:
        parser.error("argument --rate: a trace has its own; --speed-up changes it")
    if args.trace is None:
        parser.error("argument --trace: is required with --arrivals trace")
    try:
        return [
            arrivals.trace(args.trace, speed_up, args.duration, args.start or 0.0, args.seed)
            for speed_up in args.speed_up or [1.0]
        ]
    except OSError as error:
        parser.error(f"argument --trace: {args.trace}: {error.strerror or error}")
    except ValueError as error:
        parser.error(f"argument --trace: {error}")
