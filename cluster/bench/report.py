"""Results of runs: a summary, a table, a plot."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from cluster.bench.answers import Kind
from cluster.bench.load import RequestOutcome
from cluster.bench.parts import Part, by_adapters, by_model, parts_table
from cluster.bench.tasks import Task

MAX_TRUSTED_LAG_S = 0.05


@dataclass(frozen=True)
class Summary:
    """A run in numbers. Latencies of completed requests are in seconds, from due to the last byte.

    span_s: from the first due time to the last completion, or to the last due time if that is later, so that
    a server that stops answering does not look fast; images_per_s: completed pictures / span_s
    goodput_images_per_s: the same for pictures of requests that completed within slo_s; offered_*: from the
    due times; first_preview_*: from due to the first preview, of completed requests with previews
    tasks: requests by Task; earlier results have none
    num_models: models that the requests name; by_model: those with the most requests, and all others together
    by_adapters: requests with adapters and those without; empty if all are of one kind
    Percentiles are interpolated linearly. None: nothing to measure.
    """

    num_requests: int
    counts: Mapping[str, int]  # by Kind
    num_images: int
    span_s: float
    offered_requests_per_s: float | None
    offered_images_per_s: float | None
    images_per_s: float
    slo_s: float | None
    goodput_images_per_s: float | None
    latency_mean_s: float | None
    latency_p50_s: float | None
    latency_p90_s: float | None
    latency_p95_s: float | None
    latency_p99_s: float | None
    first_preview_p50_s: float | None
    first_preview_p95_s: float | None
    generator_lag_p99_s: float
    tasks: Mapping[str, int] = field(default_factory=dict)
    num_models: int = 0
    by_model: Sequence[Part] = ()
    by_adapters: Sequence[Part] = ()

    @property
    def trusted(self) -> bool:
        """False if the generator lagged so much that the figures describe the generator."""
        return self.generator_lag_p99_s <= MAX_TRUSTED_LAG_S


def summarize(outcomes: Sequence[RequestOutcome], slo_s: float | None = None) -> Summary:
    """Summarizes all requests of a run, at least one."""
    due = [outcome.request.due_s for outcome in outcomes]
    completed = [outcome for outcome in outcomes if outcome.answer.kind is Kind.COMPLETED]
    latencies = [outcome.latency_s for outcome in completed]
    previews = [
        outcome.answer.first_preview_s - outcome.request.due_s
        for outcome in completed
        if outcome.answer.first_preview_s is not None
    ]
    in_time = [outcome for outcome in completed if slo_s is not None and outcome.latency_s <= slo_s]
    span_s = max([*due, *(outcome.answer.ended_s for outcome in completed)]) - min(due)
    # n arrivals have n - 1 gaps.
    per_s = (len(due) - 1) / (max(due) - min(due)) if max(due) > min(due) else None
    images_per_request = sum(outcome.request.num_images for outcome in outcomes) / len(outcomes)
    p50, p90, p95, p99 = (_percentile(latencies, rank) for rank in (50, 90, 95, 99))
    return Summary(
        num_requests=len(outcomes),
        counts=dict(Counter(outcome.answer.kind.value for outcome in outcomes)),
        num_images=sum(outcome.answer.num_images for outcome in completed),
        span_s=span_s,
        offered_requests_per_s=per_s,
        offered_images_per_s=None if per_s is None else per_s * images_per_request,
        images_per_s=_per_s(completed, span_s),
        slo_s=slo_s,
        goodput_images_per_s=None if slo_s is None else _per_s(in_time, span_s),
        latency_mean_s=float(np.mean(latencies)) if latencies else None,
        latency_p50_s=p50,
        latency_p90_s=p90,
        latency_p95_s=p95,
        latency_p99_s=p99,
        first_preview_p50_s=_percentile(previews, 50),
        first_preview_p95_s=_percentile(previews, 95),
        generator_lag_p99_s=float(np.percentile([outcome.lag_s for outcome in outcomes], 99)),
        tasks=dict(Counter(outcome.request.task.value for outcome in outcomes)),
        num_models=len({outcome.request.model for outcome in outcomes} - {None}),
        by_model=by_model(outcomes),
        by_adapters=by_adapters(outcomes),
    )


def _per_s(outcomes: Sequence[RequestOutcome], span_s: float) -> float:
    """Pictures per second."""
    return sum(outcome.answer.num_images for outcome in outcomes) / span_s if span_s else 0.0


def _percentile(values: Sequence[float], rank: float) -> float | None:
    return float(np.percentile(values, rank)) if values else None


def table(results: Mapping[str, Sequence[Summary]]) -> Group:
    """Tables with a row per run: figures, counts of outcomes, and requests by task if any started from a
    picture; and ones by model and by adapters if requests differ there. Empty columns are left out."""
    runs = [(name, summary) for name, summaries in results.items() for summary in summaries]
    figures = {
        head: [getattr(summary, field) for _, summary in runs]
        for head, field in {
            "images\n/s": "images_per_s",
            "goodput\n/s": "goodput_images_per_s",
            "mean\ns": "latency_mean_s",
            "p50\ns": "latency_p50_s",
            "p90\ns": "latency_p90_s",
            "p95\ns": "latency_p95_s",
            "p99\ns": "latency_p99_s",
            "preview\np50 s": "first_preview_p50_s",
            "preview\np95 s": "first_preview_p95_s",
        }.items()
    }
    counts = {kind.value: [summary.counts.get(kind.value) for _, summary in runs] for kind in Kind}
    shown = [figures, counts]
    if any(summary.tasks.keys() - {Task.TXT2IMG.value} for _, summary in runs):
        shown.append({task.value: [summary.tasks.get(task.value) for _, summary in runs] for task in Task})
    parts: list[Table] = []
    if any(summary.num_models > 1 for _, summary in runs):
        counts["models"] = [summary.num_models or None for _, summary in runs]
        parts.append(parts_table("model", [(name, summary.by_model) for name, summary in runs]))
    if any(summary.by_adapters for _, summary in runs):
        parts.append(parts_table("adapters", [(name, summary.by_adapters) for name, summary in runs]))
    return Group(*(_drawn(runs, columns) for columns in shown), *parts)


def _drawn(runs: Sequence[tuple[str, Summary]], columns: Mapping[str, Sequence[float | None]]) -> Table:
    shown = {head: values for head, values in columns.items() if any(value is not None for value in values)}
    drawn = Table("system", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("offered\nreq/s", *shown):
        drawn.add_column(head, justify="right", no_wrap=True)
    for index, (name, summary) in enumerate(runs):
        values = [summary.offered_requests_per_s, *(column[index] for column in shown.values())]
        drawn.add_row(name, *map(_shown, values))
    return drawn


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def warnings(results: Mapping[str, Sequence[Summary]]) -> list[str]:
    """A sentence for each run with untrustworthy figures."""
    return [
        f"{name} at {_shown(summary.offered_requests_per_s)} requests/s: the generator lagged "
        f"(p99 {1000 * summary.generator_lag_p99_s:.0f} ms, at most {1000 * MAX_TRUSTED_LAG_S:.0f}): "
        "do not trust these figures."
        for name, summaries in results.items()
        for summary in summaries
        if not summary.trusted
    ]


def plot(results: Mapping[str, Sequence[Summary]], path: Path, title: str = "") -> None:
    """Latency over throughput, and throughput over offered load: a line per system, a point per run.

    The right side shows whether the latencies belong to all requests or only to the few not refused.
    """
    figure = Figure(figsize=(11, 4.5 + 0.25 * len(results)), layout="constrained")
    figure.suptitle(title, wrap=True)
    latency, throughput = figure.subplots(1, 2)
    for (name, summaries), color in zip(results.items(), cycle(f"C{index}" for index in range(10))):
        runs = sorted(summaries, key=lambda summary: summary.offered_images_per_s or 0.0)
        done = [summary.images_per_s for summary in runs]
        offered = [_plotted(summary.offered_images_per_s) for summary in runs]
        p50 = [_plotted(summary.latency_p50_s) for summary in runs]
        p95 = [_plotted(summary.latency_p95_s) for summary in runs]
        latency.plot(done, p50, "o-", color=color, label=f"{name}, p50")
        latency.plot(done, p95, "o--", color=color, label=f"{name}, p95")
        throughput.plot(offered, done, "o-", color=color, label=name)
        if any(summary.goodput_images_per_s is not None for summary in runs):
            goodput = [_plotted(summary.goodput_images_per_s) for summary in runs]
            throughput.plot(offered, goodput, "o:", color=color, label=f"{name}, goodput")
    latency.set(xlabel="completed images/s", ylabel="latency from due, s", yscale="log", xlim=(0, None))
    # Several ticks within each power of ten: latencies often stay within one.
    latency.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    latency.yaxis.set_major_formatter("{x:g}")
    latency.yaxis.set_minor_formatter(NullFormatter())
    throughput.set(xlabel="offered images/s", ylabel="completed images/s", xlim=(0, None), ylim=(0, None))
    throughput.axline((0, 0), slope=1, color="grey", linewidth=0.8, label="all offered load")
    for axes in (latency, throughput):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))  # hides nothing
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _plotted(value: float | None) -> float:
    return float("nan") if value is None else value  # a gap in the line
