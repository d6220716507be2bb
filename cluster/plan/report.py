"""A plan's results as tables and sentences."""

from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.bench.answers import Kind
from cluster.bench.mix import PlannedRequest
from cluster.bench.tasks import Task
from cluster.plan.load_plan import Goal, LoadPlan, Option
from cluster.plan.validation import Validated

COMPARED = {
    "images/s": "images_per_s",
    "p50 s": "latency_p50_s",
    "p95 s": "latency_p95_s",
    "p99 s": "latency_p99_s",
}


def num_models(planned: Sequence[PlannedRequest]) -> int:
    """Number of models that requests name."""
    return len({request.model for request in planned} - {None})


def title(planned: Sequence[PlannedRequest]) -> str:
    """Describes a load in one line."""
    span_s = planned[-1].due_s - planned[0].due_s
    images = sum(request.num_images for request in planned)
    rate = f", {(len(planned) - 1) / span_s:.2f} requests/s" if span_s else ""
    tasks = Counter(request.task for request in planned)
    counted = ", ".join(f"{tasks[task]} {task}" for task in Task if tasks[task])
    by_task = f" ({counted})" if tasks.keys() - {Task.TXT2IMG} else ""
    models = f", {num_models(planned)} models" if num_models(planned) > 1 else ""
    having = sum(bool(request.loras) for request in planned)
    adapters = f", {having} with adapters" if having else ""
    return f"{len(planned)} requests{by_task} for {images} images in {span_s:.0f} s{rate}{models}{adapters}"


def options_table(load: LoadPlan, goal: Goal) -> Table:
    """A row per option; the best has a star."""
    heads = ["", "GPUs", "denoi-\nsers", "row\ncap", "images\n/s", "p50\ns", "p95\ns", "p99\ns"]
    heads += [f"within\n{goal.slo_s:g} s", "re-\nfused", "$ per\n1,000"]
    has_loads = any(option.num_loads for option in load.options)
    table = _table([*heads, "waited\nfor load"] if has_loads else heads)
    for option in load.options:
        summary = option.summary
        latencies = (summary.latency_p50_s, summary.latency_p95_s, summary.latency_p99_s)
        table.add_row(
            "*" if option is load.best else "",
            str(option.gpus),
            _denoisers(option),
            str(option.row_cap),
            f"{summary.images_per_s:.2f}",
            *("" if latency is None else f"{latency:.2f}" for latency in latencies),
            f"{100 * option.within_slo:.1f}%",
            str(summary.num_requests - summary.counts.get(Kind.COMPLETED, 0)),
            "" if option.per_1000_images is None else f"{option.per_1000_images:.2f}",
            *([f"{100 * option.waited_for_load:.1f}%"] if has_loads else []),
        )
    return table


def _table(heads: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _denoisers(option: Option) -> str:
    numbers = [number for _, number in option.denoisers]
    return f"{min(numbers)}-{max(numbers)}" if option.is_autoscaled else str(numbers[0])


def over_time(option: Option) -> str:
    """The number of denoisers over time of an autoscaled option."""
    changes = [f"{number} at {second:.0f} s" for second, number in option.denoisers]
    return f"Autoscaled, denoisers: {', '.join(changes)}."


def recommendation(load: LoadPlan, goal: Goal) -> str:
    """The best option in one sentence."""
    wanted = f"{goal.percentile:g}% of requests within {goal.slo_s:g} s"
    if (best := load.best) is None:
        gpus = [option.gpus for option in load.options if not option.is_autoscaled]
        tried = f" ({min(gpus)} to {max(gpus)} were simulated)" if gpus else ""
        return f"Nothing up to {goal.max_gpus} GPUs would keep {wanted}{tried}."
    waited = f" {best.waited_for_load:.1%} of the requests wait for a load." if best.num_loads else ""
    return (
        f"{_counted(best.gpus, 'GPU')} with {_counted(best.denoisers[0][1], 'denoiser')} and a row cap of "
        f"{best.row_cap} would keep {wanted} ({100 * best.within_slo:.1f}%, p95 "
        f"{best.summary.latency_p95_s:.2f} s) at ${best.per_1000_images:.2f} per 1,000 images." + waited
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def comparison(validated: Sequence[Validated]) -> Table:
    """Predicted and measured values, a row per figure and load."""
    table = _table(["offered\nreq/s", "", "predicted", "measured", "off"])
    for one in validated:
        for figure, name in COMPARED.items():
            rate = f"{one.measured.offered_requests_per_s or 0.0:.2f}"
            table.add_row(rate, figure, *_compared(getattr(one.predicted, name), getattr(one.measured, name)))
    return table


def _compared(predicted: float | None, measured: float | None) -> list[str]:
    if predicted is None or not measured:
        return ["" if value is None else f"{value:.2f}" for value in (predicted, measured)]
    return [f"{predicted:.2f}", f"{measured:.2f}", f"{100 * (predicted / measured - 1):+.1f}%"]
