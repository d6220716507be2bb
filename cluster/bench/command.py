"""`midstep bench`: load one or several servers at one or several rates, and report."""

import asyncio
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.bench.answers import Kind
from cluster.bench.load import RequestOutcome, Target, run_load
from cluster.bench.mix import PlannedRequest
from cluster.bench.options import PLOT_NAME, Drawing, Load, read_options
from cluster.bench.report import Summary, plot, summarize, table, warnings
from cluster.bench.results import new_results, write_results


def main(argv: Sequence[str] | None = None) -> None:
    options = read_options(argv)
    console = Console()
    if isinstance(options, Drawing):
        plot(options.results, options.output)
        console.print(table(options.results))
    else:
        results = _measure(options, console)
        for name, summaries in results.items():
            write_results(new_results(name, options.settings, summaries), options.output / f"{name}.json")
        plot(results, options.output / PLOT_NAME)
        if not any(summary.num_images for summaries in results.values() for summary in summaries):
            sys.exit("midstep bench: no request was completed")
    console.print(f"Written to {options.output}", markup=False, highlight=False)


def _measure(load: Load, console: Console) -> dict[str, list[Summary]]:
    """Tells of progress on the way and of all that came out at the end."""
    results: dict[str, list[Summary]] = {name: [] for name in load.targets}
    problems: Counter[str] = Counter()
    try:
        with new_progress() as progress:
            # Systems take turns within each rate, so that a machine that changes its pace does so for all.
            for planned in load.plans:
                for name, target in load.targets.items():
                    outcomes = run(target, planned, load.warmup, load.timeout_s, name, progress)
                    results[name].append(summarize(outcomes, load.slo_s))
                    problems.update(_problem(name, outcome) for outcome in outcomes if outcome.answer.detail)
    except KeyboardInterrupt:
        sys.exit("midstep bench: interrupted, nothing was written")
    console.print(table(results))
    for problem, count in problems.most_common(5):
        console.print(f"{count} times {problem}", markup=False, highlight=False)
    for warning in warnings(results):
        console.print(f"Warning: {warning}", style="bold red", markup=False, highlight=False)
    return results


def new_progress() -> Progress:
    """On stderr: bars that count outcomes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    counts = TextColumn("{task.fields[counts]}")
    return Progress(*columns, counts, console=Console(stderr=True), refresh_per_second=4)


def _problem(name: str, outcome: RequestOutcome) -> str:
    return f"{name}: {outcome.answer.kind}: {outcome.answer.detail}"


def run(
    target: Target,
    planned: Sequence[PlannedRequest],
    warmup: int,
    timeout_s: float,
    name: str,
    progress: Progress,
) -> list[RequestOutcome]:
    """One run, with a bar of that name. warmup: requests before it, which do not count."""
    on_outcome = counting(progress, name, len(planned))
    # Of other seeds than the run's, so that nothing of the run is made already.
    first = [
        replace(request, due_s=0.0, seed=request.seed + 1)
        for request in itertools.islice(itertools.cycle(planned), warmup)
    ]
    asyncio.run(run_load(target, first, timeout_s))
    return asyncio.run(run_load(target, planned, timeout_s, on_outcome))


def counting(progress: Progress, name: str, total: int) -> Callable[[RequestOutcome], None]:
    """Adds a bar that counts outcomes."""
    task = progress.add_task(name, total=total, counts="")
    counts: Counter[Kind] = Counter()

    def on_outcome(outcome: RequestOutcome) -> None:
        counts[outcome.answer.kind] += 1
        shown = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        progress.update(task, advance=1, counts=shown)

    return on_outcome


if __name__ == "__main__":
    main()
