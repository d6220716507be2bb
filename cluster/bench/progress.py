"""Runs of a load, with bars that show how far they are."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.bench.answers import Kind
from cluster.bench.load import RequestOutcome, Target, run_load
from cluster.bench.mix import PlannedRequest


def new_progress() -> Progress:
    """On stderr: bars that count outcomes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    counts = TextColumn("{task.fields[counts]}")
    return Progress(*columns, counts, console=Console(stderr=True), refresh_per_second=4)


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
