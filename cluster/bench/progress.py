"""Runs a load with progress bars."""

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
    """Progress bars on stderr that count outcomes."""
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
    """One run, with a bar of that name. warmup: uncounted requests before it"""
    on_outcome = counting(progress, name, len(planned))
    # These have other seeds, so that no picture of the run is made before.
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
