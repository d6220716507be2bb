"""The planner's simulation: exact times, and the same order of steps as the engine."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from simpy import Environment

from cluster.bench.answers import Kind
from cluster.bench.arrivals import poisson, steps
from cluster.bench.load import RequestOutcome
from cluster.bench.mix import Mix, PlannedRequest, plan
from cluster.bench.report import summarize
from cluster.plan.denoiser import DenoiserReplica, DenoisingCosts, Room
from cluster.plan.devices import Device, Devices, Sharing
from cluster.plan.load_plan import Goal, option_of, plan_load
from cluster.plan.model import Model
from cluster.plan.model_slots import Loads
from cluster.plan.simulation import Replicas, Simulated, Simulation
from cluster.plan.stages import DecoderReplica, Overheads, VaeCall
from cluster.plan.validation import evenly, measured_request_s, measured_slowdown
from deployments.batching import Batching
from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.engine.engine import Engine
from deployments.engine.engine_config import EngineConfig
from deployments.engine.messages import DenoisedLatents, DenoiseRequest, PromptEmbeds, TokenCount
from deployments.engine.model_pool import KnownModel, OneModel
from deployments.engine.model_source import ModelSource, load_model_info
from deployments.engine.samplers import SamplerTables
from deployments.engine.simulated import SimulatedDevice, SimulatedSteps, SimulatedUNet
from serve.config.app import AppConfig
from serve.config.schema import ConfigError
from tests.generation_requests import denoise_request
from tests.tiny_models import SHAPES_MODEL

SHAPE = (16, 16)
FORWARD = Curve(0.010, 2, 0.004)
COST = CostModel(
    encode=Curve(0.002, 1, 0.001),
    forward=StageCost(((SHAPE, FORWARD),)),
    decode=StageCost(((SHAPE, Curve(0.020, 1, 0.015)),)),
)
ONE_EACH = Replicas(1, 1, 1)
WAIT_S = 0.005  # for others, in the encoder and at admission, by default
NO_OVERHEADS = Overheads()


def model(
    sharing: Sharing = Sharing.NOTHING,
    overheads: Overheads = NO_OVERHEADS,
    cost: CostModel = COST,
    **sections: Any,
) -> Model:
    config = AppConfig.model_validate(sections)
    return Model(config, load_model_info(ModelSource(str(SHAPES_MODEL))), cost, sharing, overheads)


def request(due_s: float, steps: int = 20, **fields: Any) -> PlannedRequest:
    return PlannedRequest(due_s, "a star", seed=1, num_inference_steps=steps, guidance_scale=5.0, **fields)


def ends(simulated: Simulated) -> list[float]:
    return [outcome.answer.ended_s for outcome in simulated.outcomes]


ALONE_S = WAIT_S + 0.003 + WAIT_S + 20 * 0.010 + 0.020


def test_a_request_alone_takes_exactly_what_its_parts_cost() -> None:
    [ended] = ends(Simulation(model(), ONE_EACH).run([request(1.0)]))
    assert ended - 1.0 == pytest.approx(ALONE_S, abs=1e-12)
    overheads = Overheads(request_s=0.03, step_s=0.001, slowdown=1.5)
    [ended] = ends(Simulation(model(overheads=overheads), ONE_EACH).run([request(1.0)]))
    assert ended - 1.0 == pytest.approx(ALONE_S + 0.03 + 20 * (0.001 + 0.005), abs=1e-12)


def test_two_requests_share_forwards_from_the_step_after_the_second_is_there() -> None:
    """The second arrives within the first one's third step of 10 ms. Shared steps take 18 ms."""
    first, second = ends(Simulation(model(), ONE_EACH).run([request(0.0), request(0.03)]))
    began = WAIT_S + 0.003 + WAIT_S
    both_from = began + 3 * 0.010  # the prompt is cached, so the second arrives 5 ms after it is due
    decoded_s = 0.020
    assert first == pytest.approx(both_from + 17 * 0.018 + decoded_s, abs=1e-12)
    assert second == pytest.approx(both_from + 17 * 0.018 + 3 * 0.010 + decoded_s, abs=1e-12)


def test_an_image_goes_to_the_denoiser_with_the_least_to_do() -> None:
    """By number of requests, each would get two."""
    load = [request(0.0, 100), request(0.1, 10), request(0.1, 10), request(0.1, 10)]
    [alone] = ends(Simulation(model(), ONE_EACH).run(load[:1]))
    long, *_ = ends(Simulation(model(), Replicas(1, 2, 1)).run(load))
    assert long == pytest.approx(alone, abs=1e-12)


def test_what_is_encoded_already_is_not_encoded_again() -> None:
    first, second = Simulation(model(), ONE_EACH).run([request(0.0), request(10.0)]).outcomes
    assert first.latency_s - second.latency_s == pytest.approx(WAIT_S + 0.003)


def denoising(index: int, steps: int, size: int, guided: bool, priority: int) -> DenoiseRequest:
    embeds = torch.zeros(77, 1)
    negative = (embeds, torch.empty(0)) if guided else (None, None)
    prompt = PromptEmbeds(
        embeds, negative[0], torch.empty(0), negative[1], TokenCount(3, 3), TokenCount(2, 2)
    )
    return denoise_request(
        str(index),
        prompt,
        steps,
        height=size,
        width=size,
        guidance_scale=5.0 if guided else 1.0,
        seed=index,
        priority=priority,
    )


@pytest.mark.parametrize("row_counts", [(), (2, 4, 8, 16)], ids=["unpadded", "padded"])
def test_the_simulated_denoiser_is_the_engine(row_counts: tuple[int, ...]) -> None:
    """The production engine with its own clock and the same arrivals ends all requests at the same times."""
    rng = random.Random(3)
    arrivals = [
        (
            at,
            denoising(
                index,
                rng.choice([4, 20, 50]),
                rng.choice([128, 128, 192]),
                rng.random() < 0.8,
                rng.choice([0, 1]),
            ),
        )
        for index, at in enumerate(poisson(8.0, 10.0, seed=4))
    ]
    info = load_model_info(ModelSource(str(SHAPES_MODEL)))
    tables = SamplerTables(info.scheduler_config)
    config = EngineConfig(16, 12, 8, SHAPE, row_counts)
    cost = StageCost(((SHAPE, FORWARD),))

    now, engine_ended, waiting = [0.0], {}, list(arrivals)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    unet = SimulatedUNet({"in_channels": 1, "out_channels": 1})
    steps = SimulatedSteps(cost, SimulatedDevice(lambda: now[0], sleep, runs_ahead=False))
    engine = Engine(OneModel(KnownModel(unet, tables, cost), steps), config, lambda: now[0])
    while waiting or engine.num_requests:
        if not engine.num_requests:
            now[0] = max(now[0], waiting[0][0])
        while waiting and waiting[0][0] <= now[0]:
            at, wanted = waiting.pop(0)
            engine.add(wanted, at)
        for event in engine.step().events:
            if isinstance(event, DenoisedLatents):
                engine_ended[event.request_id] = now[0]

    env = Environment()
    costs = DenoisingCosts.of(config, cost)
    replica = DenoiserReplica(env, Device(env), Batching(1, 0.0), costs, NO_OVERHEADS, Room(), Loads())
    ended = {}

    def arrive(at: float, wanted: DenoiseRequest) -> Any:
        yield env.timeout(at)
        yield replica.run(wanted)
        ended[wanted.request_id] = env.now

    env.run(env.all_of([env.process(arrive(at, wanted)) for at, wanted in arrivals]))
    assert ended == pytest.approx(engine_ended, rel=1e-9)
    assert len(ended) == len(arrivals) > 60


def test_one_at_a_time_waits_as_the_formula_says() -> None:
    """With room for one image per forward it is an M/D/1 queue: the wait is rho / (2 (1 - rho)) services."""
    config, service_s, load = EngineConfig(2, 2, 2, SHAPE), 4 * 0.010, 0.6
    env = Environment()
    costs = DenoisingCosts.of(config, StageCost(((SHAPE, FORWARD),)))
    replica = DenoiserReplica(env, Device(env), Batching(1, 0.0), costs, NO_OVERHEADS, Room(), Loads())
    waited = []

    def arrive(at: float, index: int) -> Any:
        yield env.timeout(at)
        yield replica.run(denoising(index, 4, 128, guided=True, priority=0))
        waited.append(env.now - at - service_s)

    times = poisson(load / service_s, 1000.0, seed=5)
    env.run(env.all_of([env.process(arrive(at, index)) for index, at in enumerate(times)]))
    assert len(waited) == len(times)
    expected_s = load / (2 * (1 - load)) * service_s
    assert sum(waited) / len(waited) == pytest.approx(expected_s, rel=0.06)


def test_calls_that_run_at_once_share_the_device() -> None:
    env = Environment()
    device, ended = Device(env), {}

    def call(at: float, seconds: float) -> Any:
        yield env.timeout(at)
        yield device.run(seconds)
        ended[at] = env.now

    # Alone until 1, at half speed until the second has its 1, alone again; a third one after a pause.
    env.run(env.all_of([env.process(call(*of)) for of in ((0.0, 3.0), (1.0, 1.0), (7.0, 0.5))]))
    assert ended == {0.0: 4.0, 1.0: 3.0, 7.0: 7.5}


def test_calls_for_which_there_is_room_do_not_slow_each_other_down() -> None:
    env = Environment()
    device = Device(env)
    device.has_room_for(2)
    two = [device.run(1.0), device.run(2.0)]
    env.run(two[0])
    assert env.now == 1.0
    three = [device.run(1.0), device.run(1.0)]  # with the rest of the second: each at two thirds
    env.run(env.all_of([*two, *three]))
    assert env.now == pytest.approx(1.0 + 1.5)


def test_each_denoiser_adds_to_what_a_machine_does_at_once() -> None:
    """Two images at the same time do not slow each other down, except in decoding."""
    load = [request(0.0), request(0.0)]
    two = Replicas(encoder=1, denoiser=2, decoder=1)
    apart, machine = (
        ends(Simulation(model(sharing), two).run(load)) for sharing in (Sharing.NOTHING, Sharing.MACHINE)
    )
    assert machine == pytest.approx(apart)


def test_stages_on_one_device_slow_each_other_down() -> None:
    """The first picture is decoded beside the second's steps. It takes 40 ms, and they take 20 ms more."""
    load = [request(0.0), request(0.2)]
    apart = ends(Simulation(model(Sharing.NOTHING), ONE_EACH).run(load))
    assert apart == pytest.approx([0.213 + 0.020, 0.213 + 0.200 + 0.020])
    shared = ends(Simulation(model(Sharing.STAGES), ONE_EACH).run(load))
    assert shared == pytest.approx([ended + 0.020 for ended in apart])


def test_a_machine_is_busy_with_requests_as_well() -> None:
    """The 50 ms that the second request takes outside of the stages slow down the first one's steps."""
    load, overheads = [request(0.0), request(0.1)], Overheads(request_s=0.05)
    machine = ends(Simulation(model(Sharing.MACHINE, overheads), ONE_EACH).run(load))
    # 3.7 steps by 0.1 s, 5 more by 0.2 s, the second arrives within the tenth, ten together, and then one
    # image is decoded beside the other's steps.
    together_until = 0.063 + 0.100 + 0.050 + 10 * 0.018
    assert machine[0] == pytest.approx(together_until + 2 * 0.020)
    assert machine[1] == pytest.approx(together_until + 10 * 0.010 + 0.020 + 0.020)
    stages = ends(Simulation(model(Sharing.STAGES, overheads), ONE_EACH).run(load))
    assert stages[0] < machine[0]


def test_large_batches_are_decoded_in_parts() -> None:
    """Five images in one batch, with 35 ms of the device per call: two calls of two images and one of one."""
    env = Environment()
    replica = DecoderReplica(env, Device(env), 8, COST, max_hold_s=0.035)
    done = env.all_of([replica.run(VaeCall(SHAPE)) for _ in range(5)])
    env.run(done)
    assert env.now == pytest.approx(2 * 0.035 + 0.020)


def test_replicas_are_placed_where_their_share_is_free() -> None:
    devices = Devices(Environment(), Sharing.STAGES)
    places = [devices.take(share)[0] for share in (0.7, 0.7, 0.2, 0.1, 0.3)]
    assert [devices.places.index(place) for place in places] == [0, 1, 0, 0, 1]
    assert (devices.num_held, devices.most) == (2, 2)
    for place, share in zip(places, (0.7, 0.7, 0.2, 0.1, 0.3), strict=True):
        devices.give_back(place, share)
    assert devices.num_held == 0
    assert devices.take(1.0)[0] is places[0]
    assert devices.most == 2


def test_every_arrival_leaves_once() -> None:
    mix = Mix(
        sizes={None: 3, (192, 128): 1, (100, 128): 0.2},
        num_inference_steps={4: 1, 20: 1, 50: 1},
        guidance_scales={1.0: 1, 5.0: 2},
        num_images={1: 3, 4: 1},
    )
    load = plan(poisson(14.0, 40.0, seed=7), mix, seed=7)
    served = model(limits={"max_queue": 40})
    simulated = Simulation(served, Replicas(1, 2, 1)).run(load)
    assert [outcome.request for outcome in simulated.outcomes] == load
    kinds = {kind: [o for o in simulated.outcomes if o.answer.kind is kind] for kind in Kind}
    assert all(kinds[kind] for kind in (Kind.COMPLETED, Kind.BUSY, Kind.REJECTED)), (
        "the load is to be too much"
    )
    assert sum(map(len, kinds.values())) == len(load)
    assert all(outcome.answer.num_images == outcome.request.num_images for outcome in kinds[Kind.COMPLETED])
    assert all(outcome.request.width == 100 for outcome in kinds[Kind.REJECTED])
    least_s = ALONE_S - 16 * 0.010 - WAIT_S - 0.003  # four steps, all texts cached
    assert min(outcome.latency_s for outcome in kinds[Kind.COMPLETED]) >= least_s - 1e-9


SCALED = {
    "denoiser": {"max_rows": 4, "max_ongoing_requests": 4, "max_replicas": 5},
    "autoscaling": {"drain_s": 20.0, "cold_start_s": 5.0, "downscale_delay_s": 30.0},
    "internal": {"metrics_interval_s": 1.0, "look_back_period_s": 3.0, "upscale_delay_s": 0.0},
    "limits": {"max_queue": 1000},
}


def test_replicas_come_with_a_step_in_load_and_go_after_it() -> None:
    """An image takes 0.18 s of a denoiser. A minute has twelve per second, before and after it one."""
    load = plan(steps([(1.0, 60.0), (12.0, 60.0), (1.0, 120.0)], seed=1), Mix(), seed=1)
    simulated = Simulation(model(**SCALED), None).run(load)
    assert simulated.denoisers[0] == (0.0, 1)
    came = next(second for second, number in simulated.denoisers if number > 1)
    assert 60 < came < 75
    during = [number for second, number in simulated.denoisers if came + 15 < second < 120 + 30]
    assert all(number >= 3 for number in during), "twelve images a second keep 2.2 busy"
    assert simulated.denoisers[-1][1] == 1, "they stay although they are not needed"
    assert simulated.gpus == max(number for _, number in simulated.denoisers) <= 5
    assert simulated.gpu_s < simulated.gpus * simulated.outcomes[-1].answer.ended_s
    assert all(outcome.answer.kind is Kind.COMPLETED for outcome in simulated.outcomes)


def test_a_tenfold_step_is_met_within_seconds_and_drained_in_time() -> None:
    """The same as tests/integration/test_autoscaling.py, but with exact time: an image takes half a second of
    a denoiser, and for 40 s there are four per second."""
    autoscaling = {"utilization": 0.8, "drain_s": 40.0, "cold_start_s": 20.0, "downscale_delay_s": 15.0}
    cost = replace(COST, forward=StageCost(((SHAPE, Curve(0.05, 4, 0.0125)),)))
    load = plan(steps([(0.4, 60.0), (4.0, 40.0), (0.4, 120.0)], seed=1), Mix(), seed=1)
    simulated = Simulation(model(cost=cost, **SCALED | {"autoscaling": autoscaling}), None).run(load)
    changes = simulated.denoisers
    assert not [number for second, number in changes if second <= 60 and number > 1]
    asked_at = next(second for second, number in changes if number > 1)
    assert asked_at < 60 + 6
    within = [outcome for outcome in simulated.outcomes if outcome.request.due_s < 100]
    assert max(outcome.answer.ended_s for outcome in within) < 100 + autoscaling["drain_s"]
    assert all(outcome.answer.kind is Kind.COMPLETED for outcome in simulated.outcomes)
    assert changes[-1][1] == 1, "they stay although they are not needed"


def test_the_first_replica_comes_when_it_is_asked_for() -> None:
    sections = {"denoiser": {"min_replicas": 0, "autoscaling": {"cold_start_s": 5.0}}}
    [ended] = ends(Simulation(model(**sections), None).run([request(0.5)]))
    assert ended == pytest.approx(1.0 + 5.0 + 0.200 + WAIT_S + 0.020), "looked at every second"


def test_gpus_are_paid_by_the_hour() -> None:
    outcomes = Simulation(model(), ONE_EACH).run([request(float(due)) for due in range(100)]).outcomes
    simulated = Simulated(outcomes, gpus=2, gpu_s=2 * 1800.0, denoisers=[(0.0, 2)])
    option = option_of(model(), simulated, False, Goal(slo_s=1.0, percentile=95, price=4.0, max_gpus=4))
    assert option.per_1000_images == pytest.approx(40.0), "an hour of a GPU for 100 images"
    assert option.within_slo == 1.0
    late = option_of(model(), simulated, False, Goal(slo_s=0.1, percentile=95, price=4.0, max_gpus=4))
    assert (late.within_slo, late.meets_goal) == (0.0, False)


def quiet(*_: object) -> Any:
    return lambda _: None


def test_the_plan_takes_the_fewest_gpus_that_do() -> None:
    load = plan(poisson(16.0, 40.0, seed=2), Mix(), seed=2)
    goal = Goal(slo_s=0.8, percentile=95, price=3.6, max_gpus=8)
    planned = plan_load(model(limits={"max_queue": 1000}), load, goal, quiet)
    assert planned.best is not None
    assert planned.best.within_slo >= 0.95
    fewer = [option for option in planned.options if option.gpus < planned.best.gpus]
    assert fewer, "the load is to need more than could just do its work"
    assert not any(option.meets_goal for option in fewer)
    for option in planned.options:
        assert option.gpus == option.denoisers[0][1], "encoder and decoder are on the denoisers' devices"
        per_hour = 1000 / (3600 * option.summary.num_images)
        assert option.per_1000_images == pytest.approx(3.6 * option.gpu_s * per_hour)
    assert len({option.row_cap for option in planned.options}) > 1


def test_no_plan_is_made_up_where_none_does() -> None:
    load = plan(poisson(16.0, 20.0, seed=2), Mix(), seed=2)
    goal = Goal(slo_s=0.1, percentile=95, price=4.0, max_gpus=4)
    assert plan_load(model(limits={"max_queue": 1000}), load, goal, quiet).best is None


def test_another_policy_is_not_passed_off_as_simulated() -> None:
    sections = {"denoiser": {"max_replicas": 2, "autoscaling": {"policy": "requests"}}}
    goal = Goal(slo_s=9.0, percentile=95, price=4.0, max_gpus=1)
    with pytest.raises(
        ConfigError, match=r"autoscaling\.policy: 'requests', which the denoiser has, is not simulated"
    ):
        plan_load(model(**sections), [request(0.0)], goal, quiet)


@pytest.mark.parametrize(
    ("sharing", "truth"),
    [
        (Sharing.MACHINE, Overheads(0.030, 0.0, 1.0)),
        (Sharing.MACHINE, Overheads(0.030, 0.0, 1.4)),
        (Sharing.NOTHING, Overheads(0.030, 0.0012, 1.0)),
        (Sharing.STAGES, Overheads(0.030, 0.0, 1.0)),
    ],
)
def test_what_a_server_has_in_overheads_is_found_out(sharing: Sharing, truth: Overheads) -> None:
    """The server is a separate simulation whose overheads the calibration does not know. Shared cores slow
    down all forwards; a separate device has an overhead per step."""
    server = Simulation(model(sharing, truth), None)
    load = plan(poisson(2.0, 30.0, seed=6), Mix(num_inference_steps={8: 1, 20: 1}), seed=6)

    def send(planned: Sequence[PlannedRequest]) -> list[RequestOutcome]:
        return list(server.run(planned).outcomes)

    request_s = measured_request_s(model(sharing), load, send)
    assert request_s == pytest.approx(truth.request_s, abs=1e-6)
    calibrated = model(sharing, Overheads(request_s))
    found = calibrated.slowed_down(measured_slowdown(calibrated, load, send)).overheads
    assert found.step_s == pytest.approx(truth.step_s, abs=5e-5)  # 0.005 of a forward
    assert found.slowdown == pytest.approx(truth.slowdown, abs=0.005)


@pytest.mark.parametrize("slowdown", [0.3, 6.0])
def test_costs_of_another_machine_are_not_made_to_fit(slowdown: float) -> None:
    server = Simulation(model(overheads=Overheads(0.0, 0.0, slowdown)), None)
    load = plan(poisson(2.0, 30.0, seed=6), Mix(), seed=6)
    with pytest.raises(ConfigError, match=r"not 0\.5 to 4 times .*`midstep profile`"):
        measured_slowdown(model(), load, lambda planned: list(server.run(planned).outcomes))


def test_what_the_slowdown_is_measured_with_comes_evenly() -> None:
    """The load's rate, but at most the rate that the denoisers keep up with."""
    mix = Mix(num_inference_steps={20: 1.0})

    def between(due_s: Sequence[float]) -> float:
        [interval_s] = {
            round(b.due_s - a.due_s, 6) for a, b in pairwise(evenly(model(), plan(due_s, mix, 6)))
        }
        return interval_s

    assert between([0.0, 0.1, 8.0]) == pytest.approx(8.0 / 3, abs=1e-6)
    swamped_s, rows = between([0.0] * 3), model().row_cap
    assert swamped_s == pytest.approx(20 * 2 * FORWARD.seconds(rows) / rows / 0.8, abs=1e-6)


def test_the_summary_is_the_load_generators_own() -> None:
    simulated = Simulation(model(), ONE_EACH).run([request(float(due)) for due in range(50)])
    summary = summarize(simulated.outcomes, 0.5)
    assert summary.latency_p50_s == pytest.approx(ALONE_S - WAIT_S - 0.003)
    assert summary.latency_p99_s == pytest.approx(ALONE_S, abs=0.005)
    assert summary.images_per_s == pytest.approx(50 / (49 + ALONE_S - WAIT_S - 0.003))
