"""Latencies of parts of a run: by model, and with and without adapters."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.bench.answers import Kind
from cluster.bench.load import RequestOutcome

NUM_SHOWN = 5
_OTHERS = "all others"


@dataclass(frozen=True)
class Part:
    """Some requests of a run in numbers. name: of their model, or what they have in common

    Latencies are those of Summary.
    """

    name: str
    num_requests: int
    latency_mean_s: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None


def by_model(outcomes: Sequence[RequestOutcome]) -> list[Part]:
    """The models with the most requests, then the others together; nothing if no request names one."""
    by_name: defaultdict[str, list[RequestOutcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.request.model is not None:
            by_name[outcome.request.model].append(outcome)
    names = sorted(by_name, key=lambda name: -len(by_name[name]))
    shown = [_part(name, by_name[name]) for name in names[:NUM_SHOWN]]
    others = [outcome for name in names[NUM_SHOWN:] for outcome in by_name[name]]
    return [*shown, _part(_OTHERS, others)] if others else shown


def by_adapters(outcomes: Sequence[RequestOutcome]) -> list[Part]:
    """The requests with adapters, and those without; nothing if all are of one kind."""
    having = [outcome for outcome in outcomes if outcome.request.loras]
    others = [outcome for outcome in outcomes if not outcome.request.loras]
    return [_part("with", having), _part("without", others)] if having and others else []


def _part(name: str, outcomes: Sequence[RequestOutcome]) -> Part:
    latencies = [one.latency_s for one in outcomes if one.answer.kind is Kind.COMPLETED]
    if not latencies:
        return Part(name, len(outcomes), None, None, None)
    p50, p95 = (float(np.percentile(latencies, rank)) for rank in (50, 95))
    return Part(name, len(outcomes), float(np.mean(latencies)), p50, p95)


def parts_table(head: str, runs: Sequence[tuple[str, Sequence[Part]]]) -> Table:
    """A row for each of the runs' parts. head: what their names are; runs: with their systems' names"""
    drawn = Table("system", head, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("requests", "mean\ns", "p50\ns", "p95\ns"):
        drawn.add_column(column, justify="right", no_wrap=True)
    for name, parts in runs:
        for one in parts:
            latencies = (one.latency_mean_s, one.latency_p50_s, one.latency_p95_s)
            shown = ("" if latency is None else f"{latency:.2f}" for latency in latencies)
            drawn.add_row(name, one.name, str(one.num_requests), *shown)
    return drawn
