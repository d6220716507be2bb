"""The number of GPUs that a load needs, and their cost."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.bench.load import RequestOutcome
from cluster.bench.mix import PlannedRequest
from cluster.bench.report import Summary, summarize
from cluster.plan.model import Model
from cluster.plan.simulation import Replicas, Simulated, Simulation
from serve.config.schema import ConfigError
from serve.errors import InvalidRequestError
from serve.generation import GenerationRequest

# Called with the name and number of requests of the next simulation. Its result is called with each outcome.
Watcher = Callable[[str, int], Callable[[RequestOutcome], None]]


@dataclass(frozen=True)
class Goal:
    """percentile: percentage of all requests, refused ones included, to be answered within slo_s

    price: of a GPU-hour; max_gpus: most GPUs to consider
    """

    slo_s: float
    percentile: float
    price: float
    max_gpus: int


@dataclass(frozen=True)
class Option:
    """One way to serve a load, and its predicted results.

    denoisers: (second, number) at each change; one entry if the number is fixed
    within_slo: share of all requests; per_1000_images: their cost, None without any image
    num_loads, waited_for_load: as in Simulated
    """

    is_autoscaled: bool
    denoisers: Sequence[tuple[float, int]]
    gpus: int
    gpu_s: float
    row_cap: int
    summary: Summary
    within_slo: float
    per_1000_images: float | None
    meets_goal: bool
    num_loads: int
    waited_for_load: float


@dataclass(frozen=True)
class LoadPlan:
    """The simulated options of a load, and the best one with a fixed number of replicas: the fewest GPUs that
    meet the goal, and among their row caps the one with most requests in time."""

    options: Sequence[Option]
    best: Option | None


def plan_load(model: Model, planned: Sequence[PlannedRequest], goal: Goal, watch: Watcher) -> LoadPlan:
    """The plan of a load. Raises ConfigError for autoscaling that is not simulated."""
    fixed = _fixed(model, planned, goal, watch)
    enough = [option for option in fixed if option.meets_goal]
    best = min(enough, key=lambda option: (option.gpus, -option.within_slo, _latency(option)), default=None)
    options = sorted(fixed, key=lambda option: (option.gpus, option.row_cap))
    if model.config.autoscaling_of("denoiser").is_on:
        check_autoscaling(model)
        options.append(_simulated(model, None, planned, goal, watch))
    return LoadPlan(options, best)


def check_autoscaling(model: Model) -> None:
    """Raises ConfigError for a policy that is not simulated."""
    for name in model.config.stages:
        autoscaling = model.config.autoscaling_of(name)
        if autoscaling.is_on and autoscaling.policy != "work":
            raise ConfigError(
                f"autoscaling.policy: {autoscaling.policy!r}, which the {name} has, is not simulated, only "
                "'work' is"
            )


def _fixed(model: Model, planned: Sequence[PlannedRequest], goal: Goal, watch: Watcher) -> list[Option]:
    """Options with ever more denoisers, from the fewest that could do the work to the first that meets the
    goal. Then options with other row caps, also with one denoiser less."""
    requests = _accepted(model, planned)
    least = _fewest(model, requests, planned)
    options: list[Option] = []
    for denoisers in range(least.denoiser, goal.max_gpus + 1):
        replicas = Replicas(least.encoder, denoisers, least.decoder)
        option = _simulated(model, replicas, planned, goal, watch)
        if option.gpus > goal.max_gpus:
            break
        options.append(option)
        if option.meets_goal:
            break
    if not options or not options[-1].meets_goal:
        return options
    last = options[-1].denoisers[0][1]
    for denoisers in range(max(least.denoiser, last - 1), last + 1):
        for capped in _other_row_caps(model):
            replicas = Replicas(least.encoder, denoisers, least.decoder)
            options.append(_simulated(capped, replicas, planned, goal, watch))
    return options


def _accepted(model: Model, planned: Sequence[PlannedRequest]) -> list[GenerationRequest]:
    requests = []
    for request in planned:
        try:
            requests.append(model.accepted(request, ""))
        except InvalidRequestError:
            continue
    return requests


def _fewest(
    model: Model, requests: Sequence[GenerationRequest], planned: Sequence[PlannedRequest]
) -> Replicas:
    """The fewest replicas of each stage that can do its work in the time in which it comes. Encoder and
    decoder are no busier than their autoscaling would have them."""
    config, cost = model.config, model.cost
    span_s = planned[-1].due_s - planned[0].due_s

    def needed(work_s: float, utilization: float) -> int:
        return max(1, math.ceil(work_s / span_s / utilization)) if span_s else 1

    encode_picture = cost.picture

    def decoder_s(request: GenerationRequest) -> float:
        shape, most = request.latent_shape, config.max_decoded_images
        picture_s = encode_picture.curve(shape).seconds_each(most) if request.strength is not None else 0.0
        return request.num_images * cost.decode.curve(shape).seconds_each(most) + picture_s

    encode_s = cost.encode.seconds_each(config.text_batching.max_batch_size)
    num_texts = len({request.prompt for request in requests})
    return Replicas(
        needed(num_texts * encode_s, config.autoscaling_of("encoder").utilization),
        needed(sum(request.work_s or 0.0 for request in requests), 1.0),
        needed(sum(map(decoder_s, requests)), config.autoscaling_of("decoder").utilization),
    )


def _other_row_caps(model: Model) -> list[Model]:
    """The model with half its row cap and with the largest row cap, where these differ from its own."""
    capped = [model.with_row_cap(rows) for rows in (model.row_cap // 2, model.engine.max_rows) if rows >= 2]
    return list({other.row_cap: other for other in capped if other.row_cap != model.row_cap}.values())


def _simulated(
    model: Model, replicas: Replicas | None, planned: Sequence[PlannedRequest], goal: Goal, watch: Watcher
) -> Option:
    name = f"{replicas.denoiser} denoisers" if replicas else "autoscaled"
    on_outcome = watch(f"{name}, row cap {model.row_cap}", len(planned))
    simulated = Simulation(model, replicas).run(planned, on_outcome)
    return option_of(model, simulated, replicas is None, goal)


def option_of(model: Model, simulated: Simulated, is_autoscaled: bool, goal: Goal) -> Option:
    """GPUs are paid from the start to the last answer, so a short run also pays for its tail."""
    summary = summarize(simulated.outcomes, goal.slo_s)
    completed = [o for o in simulated.outcomes if o.answer.num_images]
    within_slo = sum(o.latency_s <= goal.slo_s for o in completed) / len(simulated.outcomes)
    price = goal.price * simulated.gpu_s / 3600
    return Option(
        is_autoscaled,
        simulated.denoisers,
        simulated.gpus,
        simulated.gpu_s,
        model.row_cap,
        summary,
        within_slo,
        1000 * price / summary.num_images if summary.num_images else None,
        within_slo >= goal.percentile / 100,
        simulated.num_loads,
        simulated.waited_for_load,
    )


def _latency(option: Option) -> float:
    return option.summary.latency_p95_s or math.inf
