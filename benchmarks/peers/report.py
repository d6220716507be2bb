"""Results of a run of all systems: a table, ratios, a file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.bench.report import Summary
from cluster.bench.results import new_results

REFERENCE = "ray_serve_batch"
COMPARED_AT = 0.8  # of the reference's capacity


@dataclass(frozen=True)
class Measured:
    """One system's results. capacity: a saturating burst; loads: by multiple of the reference's capacity"""

    title: str
    capacity: Summary
    loads: Mapping[float, Summary]


def table(measured: Mapping[str, Measured]) -> str:
    """A row per system and rate, as Markdown; throughputs in images/s, latencies in seconds."""
    head = """\
| system | load | offered | throughput | mean | p50 | p95 | errors |
|---|---|---:|---:|---:|---:|---:|---:|"""
    rows = []
    for system in measured.values():
        runs = [("burst", system.capacity), *((f"{load:.0%}", run) for load, run in system.loads.items())]
        for load, run in runs:
            figures = (run.offered_images_per_s, run.images_per_s, *_latencies(run))
            shown = " | ".join("" if figure is None else f"{figure:.2f}" for figure in figures)
            mistrust = "" if run.trusted else ", the load came late"
            rows.append(f"| {system.title} | {load}{mistrust} | {shown} | {_errors(run)} |")
    return "\n".join([head, *rows])


def _latencies(run: Summary) -> tuple[float | None, ...]:
    return run.latency_mean_s, run.latency_p50_s, run.latency_p95_s


def _errors(run: Summary) -> int:
    return run.num_requests - run.counts.get("completed", 0)


def ratios(measured: Mapping[str, Measured]) -> str:
    """Each system against the reference, as Markdown; empty if the reference or COMPARED_AT was not run."""
    rows = list(_ratio_rows(measured))
    if not rows:
        return ""
    title = measured[REFERENCE].title
    return "\n".join(
        [
            f"Against {title}, latencies at {COMPARED_AT:.0%} of its capacity:\n",
            "| system | mean latency | p95 latency | throughput at capacity |\n|---|---:|---:|---:|",
            *rows,
        ]
    )


def _ratio_rows(measured: Mapping[str, Measured]) -> Iterator[str]:
    reference = measured.get(REFERENCE)
    if reference is None or COMPARED_AT not in reference.loads:
        return
    for system in measured.values():
        theirs, ours = reference.loads[COMPARED_AT], system.loads[COMPARED_AT]
        pairs = [
            (ours.latency_mean_s, theirs.latency_mean_s),
            (ours.latency_p95_s, theirs.latency_p95_s),
            (system.capacity.images_per_s, reference.capacity.images_per_s),
        ]
        shown = " | ".join(f"{one / other:.2f}" if one and other else "" for one, other in pairs)
        yield f"| {system.title} | {shown} |"


def write_json(measured: Mapping[str, Measured], settings: Mapping[str, Any], path: Path) -> None:
    """Writes the results with date, hardware and versions, but without paths or host names."""
    about = asdict(new_results("peers", settings, _summaries(measured)))
    del about["summaries"]
    path.parent.mkdir(parents=True, exist_ok=True)
    systems = {name: asdict(system) for name, system in measured.items()}
    path.write_text(json.dumps(about | {"systems": systems}, indent=2) + "\n")


def _summaries(measured: Mapping[str, Measured]) -> Sequence[Summary]:
    return [summary for system in measured.values() for summary in system.loads.values()]
