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
    """The model with the overheads that single requests like the first have on the server, at few and at many
    steps, where they are not known."""
    request_s, step_s = known.request_s, known.step_s
    model = replace(model, overheads=Overheads(slowdown=known.slowdown or 1.0))
    if request_s is None or step_s is None:
        request_s, step_s = _unloaded_overheads(model, first, known, send)
    return replace(model, overheads=replace(model.overheads, request_s=request_s, step_s=step_s))


def _unloaded_overheads(model: Model, first: PlannedRequest, known: Known, send: Send) -> tuple[float, float]:
    most = min(40, model.config.limits.max_num_inference_steps)
    missing, calls = [], []
    for steps in (max(1, most // 10), most):
        planned = [
            replace(first, due_s=0.0, num_images=1, num_inference_steps=steps, seed=first.seed + index)
            for index in range(UNLOADED_REQUESTS)
        ]
        apart = [replace(request, due_s=APART_S * index) for index, request in enumerate(planned)]
        measured = [send([request])[0].latency_s for request in planned]
        simulated = [outcome.latency_s for outcome in Simulation(model, None).run(apart).outcomes]
        # Without the first, which finds nothing encoded.
        missing.append(statistics.median(measured[1:]) - statistics.median(simulated[1:]))
        calls.append(model.denoising.num_calls(model.accepted(planned[0], "").sampler, steps))
    step_s = known.step_s
    if step_s is None:
        step_s = max(0.0, (missing[1] - missing[0]) / (calls[1] - calls[0]))
    request_s = known.request_s
    if request_s is None:
        request_s = max(0.0, missing[0] - calls[0] * step_s)
    return request_s, step_s


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
