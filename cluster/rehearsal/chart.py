"""Draws rehearsals: arrivals, queue, replicas, latency and cost over time, one above the other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cluster.rehearsal.series import Series


def chart(title: str, rehearsals: Mapping[str, Series], path: Path) -> None:
    """rehearsals: of one load, by name; each has its own line style"""
    figure = Figure(figsize=(13, 13), layout="constrained")
    arrivals, queue, replicas, latency, paid = figure.subplots(5, 1, sharex=True)
    for number, (name, series) in enumerate(rehearsals.items()):
        style = ("-", "--", ":", "-.")[number % 4]
        suffix = f", {name}" if len(rehearsals) > 1 else ""
        if number == 0:
            arrivals.step(series.at_s, series.arrivals_per_s, "k", where="post", label="due")
        arrivals.step(series.at_s, series.done_per_s, f"C0{style}", where="post", label=f"done{suffix}")
        queue.step(series.at_s, series.queue_s, f"C0{style}", where="post", label=name)
        for color, (stage, counts) in zip(("C1", "C0", "C2"), series.replicas.items(), strict=True):
            replicas.step(series.at_s, counts, f"{color}{style}", where="post", label=f"{stage}{suffix}")
        latency.plot(series.at_s, _with_gaps(series.latency_p50_s), f"C0.{style}", label=f"p50{suffix}")
        latency.plot(series.at_s, _with_gaps(series.latency_p95_s), f"C3.{style}", label=f"p95{suffix}")
        paid.plot(series.at_s, series.gpu_seconds, f"C0{style}", label=name)
    labels = {
        arrivals: "images/s",
        queue: "queue,\ndevice-seconds",
        replicas: "replicas",
        latency: "latency from due, s",
        paid: "GPU-seconds\npaid for",
    }
    for axes, label in labels.items():
        _finish(axes, label)
    paid.set_xlabel("seconds from the start of the load")
    figure.suptitle(title, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _finish(axes: Axes, label: str) -> None:
    axes.set(ylabel=label, ylim=(0, None))
    axes.grid(alpha=0.3)
    # Beside the lines, so that it hides nothing.
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
