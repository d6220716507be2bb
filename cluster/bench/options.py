"""The options of `midstep bench`, and the runs that they ask for."""

import argparse
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from cluster.bench import arrivals
from cluster.bench.load import Target
from cluster.bench.mix import Mix, PlannedRequest, plan, plan_trace, read_mix, read_size, read_weights
from cluster.bench.option_values import (
    OneLineParser,
    read_count,
    read_name,
    read_not_negative,
    read_positive,
    read_positive_count,
    read_positives,
    read_prompts,
    read_system,
    read_url,
    told,
)
from cluster.bench.report import Summary
from cluster.bench.results import Results, read_results
from cluster.bench.template import IMAGES_BODY, read_template

T = TypeVar("T")
PLOT_NAME = "latency_throughput.png"
DESCRIPTION = "Load one or several image servers over HTTP, open loop, and report latency and throughput."
KEY_VARIABLE = "MIDSTEP_API_KEY"
KEY_HELP = f"Each server is sent the API key in the environment variable {KEY_VARIABLE}, if that is set."
DEFAULT_DURATION_S = 60.0
# What a file of results tells of the command line: no paths, no hosts.
SETTINGS = [
    "arrivals",
    "rate",
    "duration",
    "speed_up",
    "start",
    "warmup",
    "timeout",
    "seed",
    "slo_s",
    "stream",
]


@dataclass(frozen=True)
class Load:
    """Targets by name, and a plan for each run that each of them gets. settings: for the record."""

    targets: Mapping[str, Target]
    plans: Sequence[Sequence[PlannedRequest]]
    warmup: int
    timeout_s: float
    slo_s: float | None
    output: Path
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """Earlier results by name, and the picture to draw them in."""

    results: Mapping[str, Sequence[Summary]]
    output: Path


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="midstep bench", description=DESCRIPTION, epilog=KEY_HELP, allow_abbrev=False)
    server = parser.add_argument_group("what is loaded").add_argument
    server("--url", type=told(read_url), help="a server, such as http://127.0.0.1:8000")
    server("--name", type=told(read_name), default="midstep", help="what to call it (%(default)s)")
    server("--system", type=told(read_system), action="append", metavar="NAME=URL", help="one of several")
    server("--path", default=Target.path, help="where images are made (%(default)s)")
    server("--body", type=_file(read_template), help="a JSON template of bodies, for other dialects")
    server("--stream", action="store_true", help="ask for server-sent events with previews")
    server("--partial-images", type=told(read_positive_count), default=1, help="previews (%(default)s)")

    times = parser.add_argument_group("when").add_argument
    times("--arrivals", choices=("poisson", "constant", "step", "trace"), default="poisson")
    rates = "requests/s; several are runs, but with --arrivals step the steps of one run"
    times("--rate", "--rates", type=told(read_positives), help=rates)
    times("--duration", type=told(read_positive), help="seconds of a run or step (60; a trace: to its end)")
    times("--trace", type=Path, help="CSV or CSV.GZ with arrival_s, num_images, num_inference_steps")
    times("--speed-up", type=told(read_positives), help="times as fast as it came (1); several are runs")
    times("--start", type=told(read_not_negative), help="second of the trace to start at (0)")
    times("--warmup", type=told(read_count), default=0, help="requests before each run, which do not count")
    times("--timeout", type=told(read_positive), default=300.0, help="seconds from due (%(default)s)")

    asked = parser.add_argument_group("what is asked for, as VALUE:WEIGHT,...").add_argument
    asked("--mix", type=_file(read_mix), default=Mix(), help="all of it as a YAML or JSON file")
    asked("--prompts", type=_file(read_prompts), help="a file with a prompt a line")
    asked("--sizes", type=_weights(read_size), help="such as 512x512:3,768x768:1")
    asked("--steps", type=_weights(read_positive_count), dest="num_inference_steps", help="4:20,20:40,50:10")
    asked("--guidance-scales", type=_weights(read_not_negative), help="1:1,5:3")
    asked("--samplers", type=_weights(str), help="'Euler a:1,DPM++ 2M:2'")
    asked("--num-images", type=_weights(read_positive_count), help="of one request: 1:3,4:1")
    asked("--seed", type=told(read_count), default=0, help="of times and requests (%(default)s)")

    told_of = parser.add_argument_group("what is told").add_argument
    told_of("--slo-s", type=told(read_positive), help="seconds that a good answer takes at most")
    told_of("--output", type=Path, help=f"a folder (build/bench); with --plot a picture ({PLOT_NAME})")
    told_of("--plot", type=_file(read_results), nargs="+", help="draw earlier results, load nothing")
    return parser


def _file(read: Callable[[Path], T]) -> Callable[[str], T]:
    return told(lambda text: read(Path(text)))


def _weights(read: Callable[[str], T]) -> Callable[[str], dict[T, float]]:
    return told(lambda text: read_weights(text, read))


def read_options(argv: Sequence[str] | None) -> Load | Drawing:
    """What the command line asks for; exits with a line that names the option which is at fault."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.plot is not None:
        return Drawing(_by_name(args.plot), args.output or Path(PLOT_NAME))
    systems = [*([(args.name, args.url)] if args.url else []), *(args.system or [])]
    if not systems:
        parser.error("argument --url: is required, or --system")
    if repeated := [name for name, count in Counter(name for name, _ in systems).items() if count > 1]:
        parser.error(f"argument --system: {repeated[0]!r} is there twice")
    body = IMAGES_BODY if args.body is None else args.body
    mix = _mix(args)
    key = os.environ.get(KEY_VARIABLE)
    return Load(
        {name: Target(url, args.path, body, args.stream, args.partial_images, key) for name, url in systems},
        _plans(parser, args, mix),
        args.warmup,
        args.timeout,
        args.slo_s,
        args.output or Path("build/bench"),
        {name: getattr(args, name) for name in SETTINGS} | {"mix": _described(mix)},
    )


def _by_name(earlier: Sequence[Results]) -> dict[str, Sequence[Summary]]:
    """Results of one name are told apart by their place."""
    counts = Counter(results.name for results in earlier)
    return {
        results.name if counts[results.name] == 1 else f"{results.name} ({place})": results.summaries
        for place, results in enumerate(earlier, start=1)
    }


def _mix(args: argparse.Namespace) -> Mix:
    """The file's, or the default, with what the other options say."""
    mix: Mix = args.mix
    given = {field.name: getattr(args, field.name) for field in fields(Mix)}
    return replace(mix, **{name: value for name, value in given.items() if value is not None})


def _described(mix: Mix) -> dict[str, Any]:
    sizes = {size and f"{size[0]}x{size[1]}": weight for size, weight in mix.sizes.items()}
    return asdict(mix) | {"sizes": sizes, "prompts": len(mix.prompts)}


def _plans(parser: OneLineParser, args: argparse.Namespace, mix: Mix) -> list[list[PlannedRequest]]:
    """One for each run."""
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
