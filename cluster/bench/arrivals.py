"""Arrival times: sorted seconds from the start of a run, reproducible by seed."""

import csv
import gzip
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TypeVar

from cluster.bench.option_values import read_count, read_not_negative, read_positive_count, read_share
from cluster.bench.tasks import Task, read_task

T = TypeVar("T")

TRACE_COLUMNS = ("arrival_s", "num_images", "num_inference_steps")  # and, optionally, the other fields below


@dataclass(frozen=True)
class TraceArrival:
    """due_s: seconds from the start of the run; the other fields are None where the trace has no value

    strength: the share of the steps that is done, above 0 and up to 1, of a task with a picture
    checkpoint: the name of the model there; num_lora: adapters of the request
    """

    due_s: float
    num_images: int | None = None
    num_inference_steps: int | None = None
    task: Task | None = None
    strength: float | None = None
    checkpoint: str | None = None
    num_lora: int | None = None


def constant(rate: float, duration_s: float) -> list[float]:
    """`rate` requests per second, evenly spaced, the first at 0."""
    due, times = 0.0, []
    while due < duration_s:
        times.append(due)
        due = len(times) / rate
    return times


def poisson(rate: float, duration_s: float, seed: int) -> list[float]:
    """Independent clients: on average `rate` requests per second, with exponential gaps."""
    return steps([(rate, duration_s)], seed)


def steps(plan: Sequence[tuple[float, float]], seed: int) -> list[float]:
    """Poisson arrivals whose rate changes in steps: (requests per second, seconds) each. Rate 0 pauses."""
    rng = random.Random(seed)
    start, times = 0.0, []
    for rate, duration_s in plan:
        end = start + duration_s
        # Exponential gaps have no memory, so a new rate may begin at its own start.
        due = start + rng.expovariate(rate) if rate else end
        while due < end:
            times.append(due)
            due += rng.expovariate(rate)
        start = end
    return times


def trace(
    path: Path, speed_up: float, duration_s: float | None = None, start_s: float = 0.0, seed: int = 0
) -> list[TraceArrival]:
    """The arrivals of a trace (CSV, also gzipped) from second `start_s` on, `speed_up` times as fast.

    duration_s: length of the run after the speed-up; None replays to the end. Most traces give whole seconds;
    such an arrival gets a random time within its second. Raises ValueError if the file is not a trace, and
    OSError if it cannot be read.
    """
    rng = random.Random(seed)
    try:
        with _opened(path) as lines:
            read = list(_read(lines, rng))
    except (ValueError, EOFError, zlib.error) as error:  # the last two for an incomplete gzip file
        raise ValueError(f"{path}: {error}") from error
    arrivals = [replace(arrival, due_s=(arrival.due_s - start_s) / speed_up) for arrival in read]
    in_time = [one for one in arrivals if one.due_s >= 0 and (duration_s is None or one.due_s < duration_s)]
    return sorted(in_time, key=lambda arrival: arrival.due_s)


def _opened(path: Path) -> IO[str]:
    return gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="")


def _read(lines: Iterable[str], rng: random.Random) -> Iterator[TraceArrival]:
    """The rows. due_s: since the trace began. Raises ValueError, which names the line."""
    rows = csv.DictReader(lines)
    if missing := [name for name in TRACE_COLUMNS if name not in (rows.fieldnames or ())]:
        raise ValueError(f"has no column {missing[0]!r}")
    for row in rows:
        arrival_s, num_images, num_steps = (row[name] for name in TRACE_COLUMNS)
        try:
            due_s = _seconds(arrival_s, rng)
            yield TraceArrival(
                due_s,
                _read_if_any(num_images, read_positive_count),
                _read_if_any(num_steps, read_positive_count),
                _read_if_any(row.get("task"), read_task),
                _read_if_any(row.get("strength"), read_share),
                row.get("checkpoint") or None,
                _read_if_any(row.get("num_lora"), read_count),
            )
        except ValueError as error:
            raise ValueError(f"line {rows.line_num}: {error}") from error


def _seconds(text: str | None, rng: random.Random) -> float:
    if not text:
        raise ValueError("arrival_s is empty")
    return int(text) + rng.random() if text.isdigit() else read_not_negative(text)


def _read_if_any(text: str | None, read: Callable[[str], T]) -> T | None:
    """The value; None if the field is empty, the line ends before it, or the trace has no such column."""
    return read(text) if text else None
