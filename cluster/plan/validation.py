"""Compares the simulation with a running server. Unknown overheads are measured first, then the same load
runs through both."""

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from cluster.bench.answers import Kind
from cluster.bench.load import RequestOutcome, Target, run_load
from cluster.bench.mix import PlannedRequest
from cluster.bench.report import Summary
from cluster.bench.tasks import Task
from cluster.plan.model import Model
from cluster.plan.simulation import Simulation
from cluster.plan.stages import Overheads
from serve.config.schema import ConfigError

UNLOADED_REQUESTS = 7  # with few steps, and as many with many steps
NUM_EVEN = 60  # requests for each denoiser
MAX_SHARE = 0.8  # of the denoisers' capacity by their costs
# If steps after a load take this share longer or shorter than before it, the machine itself has changed.
MAX_DRIFT = 0.1
MIN_SLOWDOWN, MAX_SLOWDOWN = 0.5, 4.0


@dataclass(frozen=True)
class Known:
    """The overheads that are given and need not be measured."""

    request_s: float | None
    step_s: float | None
    slowdown: float | None

    @property
    def has_pace(self) -> bool:
        """Whether the time of steps is known."""
        return self.step_s is not None or self.slowdown is not None


@dataclass(frozen=True)
class Validated:
    """A load on both. drift: how much longer steps took after it than before; None if unknown"""

    predicted: Summary
    measured: Summary
    overheads: Overheads
    drift: float | None

    @property
    def is_steady(self) -> bool:
        """Whether the machine kept its speed, as far as is known."""
        return self.drift is None or abs(self.drift) <= MAX_DRIFT


Send = Callable[[Sequence[PlannedRequest]], list[RequestOutcome]]


def sender(target: Target, timeout_s: float, on_outcome: Callable[[RequestOutcome], None]) -> Send:
    """A function that sends planned requests to a server and returns the outcomes."""

    def send(planned: Sequence[PlannedRequest]) -> list[RequestOutcome]:
        outcomes = asyncio.run(run_load(target, planned, timeout_s, on_outcome))
        for outcome in outcomes:
            if outcome.answer.kind is not Kind.COMPLETED:
                raise ConfigError(
                    f"--validate {target.url}: {outcome.answer.kind.value}: {outcome.answer.detail}"
                )
        return outcomes

    return send


def measured_request_s(model: Model, planned: Sequence[PlannedRequest], send: Send) -> float:
    """Seconds that a request takes outside of all stages, measured with requests like the first, alone, with
    few and with many steps. The model must have no overheads.

    Reading a picture would count as well, so the first request without a picture is taken if there is one.
    """
    first = next((one for one in planned if one.task is Task.TXT2IMG), planned[0])
    if first.strength is not None:
        first = replace(first, strength=1.0)  # a part of few steps may be none
    measured_s, simulated_s = (_rest_s(model, first, run) for run in (send, _simulated(model)))
    return max(0.0, measured_s - simulated_s)


def _rest_s(model: Model, first: PlannedRequest, send: Send) -> float:
    """Seconds that requests like the first take besides their steps."""
    most = min(40, model.config.limits.max_num_inference_steps)
    few = max(1, most // 10)
    few_calls, most_calls = (
        model.accepted(replace(first, num_inference_steps=steps), "").num_calls for steps in (few, most)
    )
    few_s, most_s = (_alone_s(first, steps, send) for steps in (few, most))
    step_s = (most_s - few_s) / max(1, most_calls - few_calls)  # 0 if only one step is allowed
    return few_s - few_calls * step_s


def _alone_s(first: PlannedRequest, steps: int, send: Send) -> float:
    """The median latency of several requests."""
    alike = replace(first, due_s=0.0, num_images=1, num_inference_steps=steps)
    seeds = range(first.seed, first.seed + UNLOADED_REQUESTS)
    latencies_s = [_mean_latency_s(send([replace(alike, seed=seed)])) for seed in seeds]
    return statistics.median(latencies_s[1:])  # the first one finds an empty cache


def _simulated(model: Model) -> Send:
    """A function that sends planned requests to a simulated server."""
    simulation = Simulation(model, None)
    return lambda planned: list(simulation.run(planned).outcomes)


def measured_slowdown(model: Model, planned: Sequence[PlannedRequest], send: Send) -> float:
    """The factor by which steps take longer than the cost model says, at the rate of this load.

    It is the slowdown at which the model has the same mean latency for the requests of `evenly`, found by
    bisection. Raises ConfigError if it is out of a plausible range.
    """
    load = evenly(model, planned)
    measured_s = _mean_latency_s(send(load))
    low, high = MIN_SLOWDOWN, MAX_SLOWDOWN
    for _ in range(12):
        middle = (low + high) / 2
        if _mean_latency_s(_simulated(model.slowed_down(middle))(load)) < measured_s:
            low = middle
        else:
            high = middle
    if low == MIN_SLOWDOWN or high == MAX_SLOWDOWN:
        raise ConfigError(
            f"--validate: requests take {measured_s:.2f} s on the server, which is not {MIN_SLOWDOWN:g} to "
            f"{MAX_SLOWDOWN:g} times as long as its costs say: measure the costs there (`midstep profile`)"
        )
    return (low + high) / 2


def evenly(model: Model, planned: Sequence[PlannedRequest]) -> list[PlannedRequest]:
    """Requests of the load, the last first, evenly spaced at its rate.

    Steps take longer the busier a machine is with other work of requests, so the rate matters. It is limited
    to what a machine somewhat slower than its costs can keep up with.
    """
    num_denoisers = model.config.denoiser.min_replicas
    chosen = list(islice(cycle(reversed(planned)), NUM_EVEN * num_denoisers))
    work_s = statistics.mean(map(model.work_s, chosen))
    between_s = max(one.due_s for one in planned) / len(planned)
    interval_s = max(between_s, work_s / num_denoisers / MAX_SHARE)
    return [replace(one, due_s=index * interval_s, seed=one.seed + 1) for index, one in enumerate(chosen)]


def _mean_latency_s(outcomes: Sequence[RequestOutcome]) -> float:
    return statistics.mean(outcome.latency_s for outcome in outcomes)
