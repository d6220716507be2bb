"""The simulation held against a server that runs: what it does not know is measured, then the same load runs
through both."""

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cluster.bench.answers import Kind
from cluster.bench.load import Outcome, Target, run_load
from cluster.bench.mix import PlannedRequest
from cluster.bench.report import Summary
from serve.planning.model import Model
from serve.planning.simulation import Simulation
from serve.planning.stages import Overheads
from serve.section import ConfigError

UNLOADED_REQUESTS = 7
BURST_IMAGES = 48
# One burst alone missed by several percent, which near saturation is most of what there is to predict.
NUM_BURSTS = 3
# Requests at least so far apart do not meet.
APART_S = 1000.0
# Where bursts after a load take so much longer or shorter than before it, the machine itself has changed.
MAX_DRIFT = 0.1
MIN_SLOWDOWN, MAX_SLOWDOWN = 0.5, 4.0


@dataclass(frozen=True)
class Known:
    """The overheads that need not be measured."""

    request_s: float | None
    step_s: float | None
    slowdown: float | None


@dataclass(frozen=True)
class Validated:
    """A load on both. drift: how much longer bursts took after it than before; None where none were sent."""

    predicted: Summary
    measured: Summary
    overheads: Overheads
    drift: float | None

    @property
    def is_steady(self) -> bool:
        """Whether the machine was the same one all the time, as far as is known."""
        return self.drift is None or abs(self.drift) <= MAX_DRIFT


Send = Callable[[Sequence[PlannedRequest]], list[Outcome]]


def sender(target: Target, timeout_s: float) -> Send:
    """Sends what is planned to a server. What it gives are the outcomes."""

    def send(planned: Sequence[PlannedRequest]) -> list[Outcome]:
        outcomes = asyncio.run(run_load(target, planned, timeout_s))
        for outcome in outcomes:
            if outcome.answer.kind is not Kind.COMPLETED:
                raise ConfigError(
                    f"--validate {target.url}: {outcome.answer.kind.value}: {outcome.answer.detail}"
                )
        return outcomes

    return send


def with_overheads(model: Model, first: PlannedRequest, known: Known, send: Send) -> Model:
    """The model with the overheads that requests like the first have on the server when hardly anything else
    runs, where they are not known."""
    request_s, step_s = known.request_s, known.step_s
    model = replace(model, overheads=Overheads(slowdown=known.slowdown or 1.0))
    if request_s is None or step_s is None:
        request_s, step_s = _unloaded_overheads(model, first, known, send)
    return replace(model, overheads=replace(model.overheads, request_s=request_s, step_s=step_s))


def _unloaded_overheads(model: Model, first: PlannedRequest, known: Known, send: Send) -> tuple[float, float]:
    """A step's is of requests in pairs: forwards of one alone may be made in another way (on a CPU by all
    cores together), and most forwards are of more."""
    most = min(40, model.config.limits.max_num_inference_steps)
    few = max(1, most // 10)
    sampler = model.accepted(first, "").sampler
    calls = {steps: model.denoising.num_calls(sampler, steps) for steps in (few, most)}
    step_s = known.step_s
    if step_s is None:
        missing = {steps: _missing_s(model, first, steps, 2, send) for steps in (few, most)}
        step_s = max(0.0, (missing[most] - missing[few]) / (calls[most] - calls[few]))
    request_s = known.request_s
    if request_s is None:
        request_s = max(0.0, _missing_s(model, first, few, 1, send) - calls[few] * step_s)
    return request_s, step_s


def _missing_s(model: Model, first: PlannedRequest, steps: int, at_once: int, send: Send) -> float:
    """How much longer requests like the first take than they should, so many at once, in the median."""
    alike = replace(first, due_s=0.0, num_images=1, num_inference_steps=steps)
    groups = [
        [replace(alike, seed=first.seed + at_once * index + member) for member in range(at_once)]
        for index in range(UNLOADED_REQUESTS)
    ]
    apart = [
        replace(request, due_s=APART_S * index) for index, group in enumerate(groups) for request in group
    ]
    simulated = Simulation(model, None).run(apart).outcomes
    missing = []
    for index, group in enumerate(groups):
        expected = simulated[at_once * index : at_once * (index + 1)]
        missing.append(_mean_latency_s(send(group)) - _mean_latency_s(expected))
    return statistics.median(missing[1:])  # the first finds nothing encoded


def _mean_latency_s(outcomes: Sequence[Outcome]) -> float:
    return statistics.mean(outcome.latency_s for outcome in outcomes)


def _burst(model: Model, planned: Sequence[PlannedRequest]) -> list[PlannedRequest]:
    """The first requests of the load, all at once."""
    burst: list[PlannedRequest] = []
    images_left = min(BURST_IMAGES, model.config.limits.max_queue)
    for request in planned:
        if request.num_images <= images_left:
            burst.append(replace(request, due_s=0.0, seed=request.seed + 1))
            images_left -= request.num_images
    return burst


def burst_s(model: Model, planned: Sequence[PlannedRequest], send: Send) -> float:
    """How long the server takes for a burst of what the load asks for, in the median of a few."""
    burst = _burst(model, planned)
    send(_prompts(burst))  # so that none is encoded within the burst
    return statistics.median(_makespan_s(send(burst)) for _ in range(NUM_BURSTS))


def slowed_down(model: Model, planned: Sequence[PlannedRequest], measured_s: float) -> Model:
    """The model with the slowdown with which that burst takes so long, by bisection.

    Raises ConfigError for one that is past all sense.
    """
    burst = _burst(model, planned)
    low, high = MIN_SLOWDOWN, MAX_SLOWDOWN
    for _ in range(12):
        middle = (low + high) / 2
        model = replace(model, overheads=replace(model.overheads, slowdown=middle))
        simulation = Simulation(model, None)
        simulation.run(_prompts(burst))
        if _makespan_s(simulation.run(burst).outcomes) < measured_s:
            low = middle
        else:
            high = middle
    if low == MIN_SLOWDOWN or high == MAX_SLOWDOWN:
        raise ConfigError(
            f"--validate: a burst takes {measured_s:.1f} s on the server, which is not {MIN_SLOWDOWN:g} to "
            f"{MAX_SLOWDOWN:g} times as long as its costs say: measure them there (`midstep profile`)"
        )
    return model


def _prompts(burst: Sequence[PlannedRequest]) -> list[PlannedRequest]:
    """A request for each prompt."""
    return list({request.prompt: request for request in burst}.values())


def _makespan_s(outcomes: Sequence[Outcome]) -> float:
    return max(outcome.answer.ended_s for outcome in outcomes)
