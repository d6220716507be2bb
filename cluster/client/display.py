"""The client's display: a bar while a job runs, and a table of jobs."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from cluster.client.predictions import Predictions


def followed(predictions: Predictions, prediction_id: str, is_quiet: bool) -> dict[str, Any]:
    """Follows a job to its end, with a bar on stderr, and returns it. Raises ServerError."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    prediction: dict[str, Any] = {}
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=is_quiet) as progress:
        bar = progress.add_task("starting", total=1.0)
        for prediction in predictions.follow(prediction_id):
            progress.update(bar, description=prediction["status"], completed=prediction["progress"])
    return prediction


def print_table(jobs: Sequence[dict[str, Any]]) -> None:
    """A table on a terminal; elsewhere a line per job, with tabs between the columns."""
    console = Console()
    # Ids are for copying. A long prompt is cut, so that a job is a line.
    table = Table(*(Column(head, no_wrap=True) for head in ("id", "status", "created", "prompt")), box=None)
    for job in jobs:
        created_at = job["created_at"][: len("2026-01-01T00:00:00")].replace("T", " ")
        row = job["id"], job["status"], created_at, " ".join(str(job["input"].get("prompt", "")).split())
        if console.is_terminal:
            table.add_row(*row)
        else:
            print(*row, sep="\t")
    if console.is_terminal:
        console.print(table)
