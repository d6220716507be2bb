"""Latencies by model, for the models with the most requests."""

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
class OfModel:
    """One model's requests in numbers, or all others' together. Latencies are those of Summary."""

    model: str
    num_requests: int
    latency_mean_s: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None


def by_model(outcomes: Sequence[RequestOutcome]) -> list[OfModel]:
    """The models with the most requests, then the others together; nothing if no request names one."""
    by_name: defaultdict[str, list[RequestOutcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.request.model is not None:
            by_name[outcome.request.model].append(outcome)
    names = sorted(by_name, key=lambda name: -len(by_name[name]))
    shown = [_of_model(name, by_name[name]) for name in names[:NUM_SHOWN]]
    others = [outcome for name in names[NUM_SHOWN:] for outcome in by_name[name]]
    return [*shown, _of_model(_OTHERS, others)] if others else shown


def _of_model(name: str, outcomes: Sequence[RequestOutcome]) -> OfModel:
    latencies = [one.latency_s for one in outcomes if one.answer.kind is Kind.COMPLETED]
    if not latencies:
        return OfModel(name, len(outcomes), None, None, None)
    p50, p95 = (float(np.percentile(latencies, rank)) for rank in (50, 95))
    return OfModel(name, len(outcomes), float(np.mean(latencies)), p50, p95)


def table_by_model(runs: Sequence[tuple[str, Sequence[OfModel]]]) -> Table:
    """A row for each of the runs' models. runs: with their systems' names"""
    drawn = Table("system", "model", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("requests", "mean\ns", "p50\ns", "p95\ns"):
        drawn.add_column(head, justify="right", no_wrap=True)
    for name, models in runs:
        for one in models:
            latencies = (one.latency_mean_s, one.latency_p50_s, one.latency_p95_s)
            shown = ("" if latency is None else f"{latency:.2f}" for latency in latencies)
            drawn.add_row(name, one.model, str(one.num_requests), *shown)
    return drawn
