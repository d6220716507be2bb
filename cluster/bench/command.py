"""`midstep bench`: loads one or more servers at one or more rates, and reports."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from cluster.api_key import KEY_HELP, api_key
from cluster.bench.load import RequestOutcome, Target
from cluster.bench.load_options import LoadOptions, file_of, with_load_options
from cluster.bench.mix import PlannedRequest, read_size
from cluster.bench.option_values import NAME, POSITIVE, POSITIVE_COUNT, SYSTEM, URL, WRITABLE_FOLDER, Read
from cluster.bench.progress import new_progress, run
from cluster.bench.report import Summary, plot, summarize, table, warnings
from cluster.bench.results import Results, new_results, read_results, write_results
from cluster.bench.served import as_served
from cluster.bench.template import IMAGES_BODY, read_template

_PLOT_NAME = "latency_throughput.png"


@dataclass(frozen=True)
class _Runs:
    """The targets and their plans by name: one for each run, the same but for the names in it."""

    targets: Mapping[str, Target]
    plans: Mapping[str, Sequence[Sequence[PlannedRequest]]]
    warmup: int
    timeout_s: float
    slo_s: float | None


@click.command(epilog=KEY_HELP, context_settings={"show_default": True})
@click.option("--url", type=URL, help="A server, such as http://127.0.0.1:8000.")
@click.option("--name", type=NAME, default="midstep", help="Name of the server.")
@click.option("--system", "systems", type=SYSTEM, multiple=True, help="A server; repeat for several.")
@click.option("--path", default=Target.path, help="Path of the route that makes images.")
@click.option("--edit-path", default=Target.edit_path, help="Path for requests that start from a picture.")
@click.option(
    "--picture-size",
    type=Read("widthxheight", read_size),
    default="512x512",
    help="Size of the picture that a request without a size starts from.",
)
@click.option("--body", type=file_of(read_template), help="JSON template of bodies, for other dialects.")
@click.option("--stream", is_flag=True, help="Ask for server-sent events with previews.")
@click.option("--partial-images", type=POSITIVE_COUNT, default="1", help="Previews to ask for.")
@with_load_options
@click.option("--slo-s", type=POSITIVE, help="Longest good answer in seconds.")
@click.option("--output", type=Path, help=f"Folder (build/bench); with --plot picture file ({_PLOT_NAME}).")
@click.option("--plot", "is_plot", is_flag=True, help="Draw earlier results (FILES) without any load.")
@click.argument("files", type=file_of(read_results), nargs=-1)
def bench(
    url: str | None,
    name: str,
    systems: Sequence[tuple[str, str]],
    path: str,
    edit_path: str,
    picture_size: tuple[int, int],
    body: Mapping[str, Any] | None,
    stream: bool,
    partial_images: int,
    load: LoadOptions,
    slo_s: float | None,
    output: Path | None,
    is_plot: bool,
    files: Sequence[Results],
) -> None:
    """Load one or more image servers over HTTP, open loop, and report latency and throughput."""
    console = Console()
    if is_plot != bool(files):
        message = "needs FILES with results" if is_plot else "is needed to draw FILES"
        raise click.BadParameter(message, param_hint="--plot")
    if is_plot:
        output = output or Path(_PLOT_NAME)
        _draw(_by_name(files), output, console)
    else:
        urls = _urls([*([(name, url)] if url else []), *systems])
        template, key = IMAGES_BODY if body is None else body, api_key()
        targets = {
            name: Target(url, path, template, stream, partial_images, key, edit_path, picture_size)
            for name, url in urls.items()
        }
        plans = load.plans()
        _check_body(template, plans)
        runs = _Runs(targets, _sent(targets, plans, load, console), load.warmup, load.timeout_s, slo_s)
        output = WRITABLE_FOLDER.convert(output or "build/bench", _parameter("output"), None)
        picture = f"{picture_size[0]}x{picture_size[1]}"
        settings = load.settings() | {"slo_s": slo_s, "stream": stream, "picture_size": picture}
        _report(_measured(runs, console), settings, output)
    console.print(f"Written to {output}", markup=False, highlight=False)


def _parameter(name: str) -> click.Parameter:
    return next(parameter for parameter in bench.params if parameter.name == name)


def _urls(systems: Sequence[tuple[str, str]]) -> dict[str, str]:
    """URLs by name."""
    if not systems:
        raise click.BadParameter("is required, or --system", param_hint="--url")
    if repeated := [name for name, count in Counter(name for name, _ in systems).items() if count > 1]:
        raise click.BadParameter(f"{repeated[0]!r} is given twice", param_hint="--system")
    return dict(systems)


def _check_body(template: Mapping[str, Any], plans: Sequence[Sequence[PlannedRequest]]) -> None:
    """Raises click.BadParameter for a template without the picture that requests start from."""
    num_edits = sum(request.task.starts_from_picture for planned in plans for request in planned)
    if num_edits and "{image}" not in json.dumps(template):
        message = f"has no {{image}}, but {num_edits} requests start from a picture"
        raise click.BadParameter(message, param_hint="--body")


def _sent(
    targets: Mapping[str, Target],
    plans: Sequence[Sequence[PlannedRequest]],
    load: LoadOptions,
    console: Console,
) -> dict[str, Sequence[Sequence[PlannedRequest]]]:
    """The plans for each target, with the names of what it serves, which it says."""
    sent = {}
    for name, target in targets.items():
        sent[name], told = as_served(name, target, plans, load.kind() == "trace", load.seed)
        for sentence in told:
            console.print(sentence, markup=False, highlight=False)
    return sent


def _by_name(earlier: Sequence[Results]) -> dict[str, Sequence[Summary]]:
    """Results with the same name get their place as a suffix."""
    counts = Counter(results.name for results in earlier)
    return {
        results.name if counts[results.name] == 1 else f"{results.name} ({place})": results.summaries
        for place, results in enumerate(earlier, start=1)
    }


def _draw(results: Mapping[str, Sequence[Summary]], output: Path, console: Console) -> None:
    plot(results, output)
    console.print(table(results))


def _report(results: Mapping[str, Sequence[Summary]], settings: Mapping[str, Any], output: Path) -> None:
    for name, summaries in results.items():
        write_results(new_results(name, settings, summaries), output / f"{name}.json")
    plot(results, output / _PLOT_NAME)
    if not any(summary.num_images for summaries in results.values() for summary in summaries):
        sys.exit("midstep bench: no request was completed")


def _measured(runs: _Runs, console: Console) -> dict[str, list[Summary]]:
    """Runs the load, shows progress, and prints all results at the end."""
    results: dict[str, list[Summary]] = {name: [] for name in runs.targets}
    problems: Counter[str] = Counter()
    try:
        with new_progress() as progress:
            # Systems take turns within each rate, so that a change in the machine's speed hits all of them.
            for of_rate in zip(*runs.plans.values(), strict=True):
                for (name, target), planned in zip(runs.targets.items(), of_rate, strict=True):
                    outcomes = run(target, planned, runs.warmup, runs.timeout_s, name, progress)
                    results[name].append(summarize(outcomes, runs.slo_s))
                    problems.update(_problem(name, outcome) for outcome in outcomes if outcome.answer.detail)
    except KeyboardInterrupt:
        sys.exit("midstep bench: interrupted, nothing was written")
    console.print(table(results))
    for problem, count in problems.most_common(5):
        console.print(f"{count} times {problem}", markup=False, highlight=False)
    for warning in warnings(results):
        console.print(f"Warning: {warning}", style="bold red", markup=False, highlight=False)
    return results


def _problem(name: str, outcome: RequestOutcome) -> str:
    return f"{name}: {outcome.answer.kind}: {outcome.answer.detail}"
