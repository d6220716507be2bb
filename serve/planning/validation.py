"""The simulation held against a server that runs: what it does not know is measured, then the same load runs
through both."""

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from cluster.bench.answers import Kind
from cluster.bench.load import Outcome, Target, run_load
from cluster.bench.mix import PlannedRequest
from cluster.bench.report import Summary
from serve.planning.model import Model
from serve.planning.simulation import Simulation
from serve.planning.stages import Overheads
from serve.section import ConfigError

UNLOADED_REQUESTS = 7
# One burst alone missed by several percent, which near saturation is most of what there is to predict.
NUM_BURSTS = 12
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


@dataclass(frozen=True)
class Unloaded:
    """What a server that has hardly anything to do takes, in seconds.

    request_s: for a request, outside of all stages
    step_s: for a denoising step of requests in pairs; forward_s: for its forward, by the cost model
    """

    request_s: float
    step_s: float
    forward_s: float

    def overheads(self, slowdown: float) -> Overheads:
        """Where forwards take slowdown times as long as by the cost model, the rest of a step is overhead."""
        return Overheads(self.request_s, max(0.0, self.step_s - slowdown * self.forward_s), slowdown)


def measured_unloaded(model: Model, first: PlannedRequest, known: Known, send: Send) -> Unloaded:
    """By requests like the first, of few and of many steps. The model has no overheads.

    A step is measured in pairs: a request that is alone may be denoised in another way (on a CPU by all
    cores together), and most are not.
    """
    request_s, step_s, forward_s = known.request_s, known.step_s, 0.0
    if request_s is None:
        alone, simulated = (_steps(model, first, 1, run) for run in (send, _simulated(model)))
        request_s = max(0.0, alone.rest_s - simulated.rest_s)
    if step_s is None:
        pairs, simulated = (_steps(model, first, 2, run) for run in (send, _simulated(model)))
        step_s, forward_s = pairs.step_s, simulated.step_s
    return Unloaded(request_s, step_s, forward_s)


@dataclass(frozen=True)
class _Steps:
    """Seconds of a request: for each of its steps, and besides."""

    step_s: float
    rest_s: float


def _steps(model: Model, first: PlannedRequest, at_once: int, send: Send) -> _Steps:
    """Of requests like the first, so many at once."""
    most = min(40, model.config.limits.max_num_inference_steps)
    few = max(1, most // 10)
    sampler = model.accepted(first, "").sampler
    few_calls, most_calls = (model.denoising.num_calls(sampler, steps) for steps in (few, most))
    few_s, most_s = (_latency_s(first, steps, at_once, send) for steps in (few, most))
    step_s = (most_s - few_s) / max(1, most_calls - few_calls)  # none, where one step is all that is allowed
    return _Steps(step_s, few_s - few_calls * step_s)


def _latency_s(first: PlannedRequest, steps: int, at_once: int, send: Send) -> float:
    """In the median of several times."""
    alike = replace(first, due_s=0.0, num_images=1, num_inference_steps=steps)
    latencies_s = []
    for index in range(UNLOADED_REQUESTS):
        seeds = range(first.seed + at_once * index, first.seed + at_once * (index + 1))
        outcomes = send([replace(alike, seed=seed) for seed in seeds])
        latencies_s.append(statistics.mean(outcome.latency_s for outcome in outcomes))
    return statistics.median(latencies_s[1:])  # the first finds nothing encoded


def _simulated(model: Model) -> Send:
    """Sends to a server of the model's own."""
    simulation = Simulation(model, None)
    return lambda planned: list(simulation.run(planned).outcomes)


def _bursts(model: Model, planned: Sequence[PlannedRequest]) -> list[list[PlannedRequest]]:
    """The requests of the load in groups that come at once, from the first again where it has too few.

    They are as large as fills a forward of every denoiser, so that forwards have all numbers of rows, down to
    those of one image, as they have under load.
    """
    num_denoisers = model.config.denoiser.autoscaling.min_replicas
    per_forward = model.row_cap // 2  # two rows an image, with guidance
    room = most = min(num_denoisers * per_forward, model.config.limits.max_queue)
    bursts: list[list[PlannedRequest]] = [[]]
    for request in cycle(planned):
        if bursts[-1] and request.num_images > room:
            if len(bursts) == NUM_BURSTS:
                break
            bursts.append([])
            room = most
        bursts[-1].append(replace(request, due_s=0.0, seed=request.seed + 1))
        room -= request.num_images
    return bursts


def burst_latency_s(model: Model, planned: Sequence[PlannedRequest], send: Send) -> float:
    """Of requests of the load in bursts, in the mean.

    Not when the last one ends: which replica gets the long requests decides on that, by chance.
    """
    bursts = _bursts(model, planned)
    encoded: set[str] = set()
    for burst in bursts:  # so that no prompt is encoded within one
        fresh = {request.prompt: request for request in burst if request.prompt not in encoded}
        encoded |= fresh.keys()
        send(list(fresh.values()))
    return statistics.mean(outcome.latency_s for burst in bursts for outcome in send(burst))


def slowed_down(
    model: Model, unloaded: Unloaded, planned: Sequence[PlannedRequest], measured_s: float
) -> Model:
    """The model with the overheads with which those bursts take so long, by bisection.

    Raises ConfigError for what is past all sense.
    """
    low, high = MIN_SLOWDOWN, MAX_SLOWDOWN
    for _ in range(12):
        middle = (low + high) / 2
        model = replace(model, overheads=unloaded.overheads(middle))
        if burst_latency_s(model, planned, _simulated(model)) < measured_s:
            low = middle
        else:
            high = middle
    if low == MIN_SLOWDOWN or high == MAX_SLOWDOWN:
        raise ConfigError(
            f"--validate: bursts take {measured_s:.1f} s on the server, which is not {MIN_SLOWDOWN:g} to "
            f"{MAX_SLOWDOWN:g} times as long as its costs say: measure them there (`midstep profile`)"
        )
    return model
