"""The options of `midstep bench`, and the runs that they ask for."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.bench.load import Target
from cluster.bench.load_options import add_what, add_when, file_of, mix_of, parsed, plans_of, settings_of
from cluster.bench.mix import PlannedRequest
from cluster.bench.option_values import (
    OneLineParser,
    read_name,
    read_positive,
    read_positive_count,
    read_system,
    read_url,
    read_writable_folder,
    told,
)
from cluster.bench.report import Summary
from cluster.bench.results import Results, read_results
from cluster.bench.template import IMAGES_BODY, read_template

PLOT_NAME = "latency_throughput.png"
DESCRIPTION = "Load one or several image servers over HTTP, open loop, and report latency and throughput."
KEY_VARIABLE = "MIDSTEP_API_KEY"
KEY_HELP = f"Each server is sent the API key in the environment variable {KEY_VARIABLE}, if that is set."


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
    server("--body", type=file_of(read_template), help="a JSON template of bodies, for other dialects")
    server("--stream", action="store_true", help="ask for server-sent events with previews")
    server("--partial-images", type=told(read_positive_count), default=1, help="previews (%(default)s)")
    add_when(parser)
    add_what(parser)
    told_of = parser.add_argument_group("what is told").add_argument
    told_of("--slo-s", type=told(read_positive), help="seconds that a good answer takes at most")
    told_of("--output", type=Path, help=f"a folder (build/bench); with --plot a picture ({PLOT_NAME})")
    told_of("--plot", type=file_of(read_results), nargs="+", help="draw earlier results, load nothing")
    return parser


def read_options(argv: Sequence[str] | None) -> Load | Drawing:
    """What the command line asks for; exits with a line that names the option which is at fault."""
    parser = _parser()
    args = parsed(parser, argv)
    if args.plot is not None:
        return Drawing(_by_name(args.plot), args.output or Path(PLOT_NAME))
    systems = [*([(args.name, args.url)] if args.url else []), *(args.system or [])]
    if not systems:
        parser.error("argument --url: is required, or --system")
    if repeated := [name for name, count in Counter(name for name, _ in systems).items() if count > 1]:
        parser.error(f"argument --system: {repeated[0]!r} is there twice")
    body = IMAGES_BODY if args.body is None else args.body
    mix = mix_of(args)
    key = os.environ.get(KEY_VARIABLE)
    return Load(
        {name: Target(url, args.path, body, args.stream, args.partial_images, key) for name, url in systems},
        plans_of(parser, args, mix),
        args.warmup,
        args.timeout,
        args.slo_s,
        _folder(parser, args.output or "build/bench"),
        settings_of(args, mix) | {"slo_s": args.slo_s, "stream": args.stream},
    )


def _folder(parser: OneLineParser, output: Path | str) -> Path:
    try:
        return read_writable_folder(str(output))
    except OSError as error:
        parser.error(f"argument --output: {output}: {error.strerror}")


def _by_name(earlier: Sequence[Results]) -> dict[str, Sequence[Summary]]:
    """Results of one name are told apart by their place."""
    counts = Counter(results.name for results in earlier)
    return {
        results.name if counts[results.name] == 1 else f"{results.name} ({place})": results.summaries
        for place, results in enumerate(earlier, start=1)
    }
