"""The planner with many models: its denoisers hold them as the engine does, and it says what loads cost."""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from simpy import Environment

from cluster.bench.arrivals import poisson
from cluster.plan.denoiser import DenoiserReplica, DenoisingCosts, Room
from cluster.plan.devices import Device
from cluster.plan.load_plan import Goal, plan_load
from cluster.plan.model_slots import Loads, ModelSlots
from cluster.plan.report import options_table, recommendation, title
from cluster.plan.simulation import Replicas, Simulated, Simulation
from deployments.batching import Batching
from deployments.engine.cost import Curve, StageCost
from deployments.engine.engine import Engine
from deployments.engine.engine_config import EngineConfig
from deployments.engine.messages import DenoisedLatents, DenoiseRequest
from deployments.engine.model_pool import ModelPool
from deployments.engine.model_source import ModelRef, ModelSource
from deployments.engine.simulated import SimulatedDevice, SimulatedLoader, SimulatedSteps
from serve.config.internal import ROUTING_STATS_PERIOD_S
from tests.tiny_models import SHAPES_MODEL
from tests.unit.test_planning import (
    ALONE_S,
    COST,
    FORWARD,
    NO_OVERHEADS,
    ONE_EACH,
    SHAPE,
    denoising,
    ends,
    model,
    quiet,
    request,
)

LOAD_S = 0.5
WITH_LOADS = replace(COST, load_s=LOAD_S)


class EngineInVirtualTime:
    """The production engine and its pool, on a clock that goes from one event to the next."""

    def __init__(self, models: Sequence[str], num_slots: int) -> None:
        self.now = 0.0
        self.ended: dict[str, float] = {}
        self.num_loads = 0
        cost = StageCost(((SHAPE, FORWARD),))
        self._device = SimulatedDevice(lambda: self.now, lambda _: None)
        self._loads: list[tuple[float, Future[Any], Any]] = []
        refs = [ModelRef(ModelSource(str(SHAPES_MODEL)), name, name, name, name) for name in models]
        pool = ModelPool(
            SimulatedLoader(self._device, lambda _: cost, 0.0),
            lambda _: cost,
            num_slots,
            self,  # type: ignore[arg-type]
            lambda: None,
            (refs[0], SimulatedSteps(cost, self._device)),
            LOAD_S,
            lambda: self.now,
        )
        for ref in refs:
            pool.know(ref)
        self._engine = Engine(pool, EngineConfig(16, 12, 8, SHAPE, ()), lambda: self.now)

    def submit(self, load: Callable[[], Any]) -> Future[Any]:
        """In place of the loading thread."""
        done: Future[Any] = Future()
        self._loads.append((self.now + LOAD_S, done, load))
        self.num_loads += 1
        return done

    def run(self, arrivals: Sequence[tuple[float, DenoiseRequest]]) -> None:
        waiting = list(arrivals)
        while waiting or self._engine.num_requests:
            times = [at for at, *_ in (*waiting[:1], *self._loads[:1])]
            if self._device.done_at > self.now:
                times.append(self._device.done_at)
            self.now = min(times)
            if waiting and waiting[0][0] == self.now:
                at, wanted = waiting.pop(0)
                self._engine.add(wanted, at)
            if self._loads and self._loads[0][0] == self.now:
                _, done, load = self._loads.pop(0)
                done.set_result(load())
                self._engine.arrange()
            self._step()

    def _step(self) -> None:
        """Finishes a forward that is done, and then launches the next."""
        while self._device.done_at <= self.now and self._engine.due_in_s == 0:
            for event in self._engine.step().events:
                if isinstance(event, DenoisedLatents):
                    self.ended[event.request_id] = self.now


@pytest.mark.parametrize("num_slots", [1, 2, 4])
def test_the_simulated_denoiser_holds_models_as_the_engine_does(num_slots: int) -> None:
    rng = random.Random(3)
    names = ["", "b", "c", "d", "e"]
    arrivals = [
        (
            at,
            replace(
                denoising(index, rng.choice([4, 20, 50]), 128, rng.random() < 0.8, 0),
                model=rng.choices(names, [8, 4, 3, 2, 1])[0],
            ),
        )
        for index, at in enumerate(poisson(5.0, 12.0, seed=4))
    ]
    engine = EngineInVirtualTime(names, num_slots)
    engine.run(arrivals)

    env, loads, ended = Environment(), Loads(), {}
    costs = DenoisingCosts.of(EngineConfig(16, 12, 8, SHAPE, ()), StageCost(((SHAPE, FORWARD),)))
    room = Room(num_slots, LOAD_S)
    replica = DenoiserReplica(env, Device(env), Batching(1, 0.0), costs, NO_OVERHEADS, room, loads)

    def arrive(at: float, wanted: DenoiseRequest) -> Any:
        yield env.timeout(at)
        yield replica.run(wanted)
        ended[wanted.request_id] = env.now

    env.run(env.all_of([env.process(arrive(at, wanted)) for at, wanted in arrivals]))
    assert ended == pytest.approx(engine.ended, rel=1e-9)
    assert len(ended) == len(arrivals) > 40
    assert loads.number == engine.num_loads > 4


def test_a_model_that_is_not_there_costs_one_load() -> None:
    """Without steps meanwhile. The second request for it finds it there."""
    load = [request(0.0, model="b"), request(5.0, model="b"), request(10.0)]
    simulated = Simulation(model(cost=WITH_LOADS), ONE_EACH).run(load)
    first, second, third = simulated.outcomes
    assert first.latency_s == pytest.approx(ALONE_S + LOAD_S, abs=1e-12)
    assert [second.latency_s, third.latency_s] == pytest.approx([ALONE_S - 0.003 - 0.005] * 2, abs=1e-12)
    assert (simulated.num_loads, simulated.waited_for_load) == (1, pytest.approx(1 / 3))


def test_the_configured_model_is_there_under_all_its_names() -> None:
    load = [request(at, model=name) for at, name in ((0.0, "sd"), (5.0, "sd-1"), (10.0, None))]
    named = model(cost=WITH_LOADS, model={"id": "sd", "aliases": ["sd-1"]})
    assert Simulation(named, ONE_EACH).run(load).num_loads == 0


def test_a_load_goes_on_beside_the_steps() -> None:
    """Steps take 10 ms meanwhile, as ever. The texts of both are encoded together, in 2 ms more."""
    simulated = Simulation(model(cost=WITH_LOADS), ONE_EACH).run([request(0.0), request(0.0, model="b")])
    assert ends(simulated) == pytest.approx([ALONE_S + 0.002, ALONE_S + 0.002 + LOAD_S], abs=1e-12)


def loads_of(slots: int, *names: str) -> int:
    load = [request(5.0 * index, model=name) for index, name in enumerate(names)]
    served = model(cost=WITH_LOADS, denoiser={"max_models": slots})
    return Simulation(served, ONE_EACH).run(load).num_loads


def test_the_model_that_was_used_longest_ago_makes_room() -> None:
    assert loads_of(2, "a", "b", "a", "b") == 2
    assert loads_of(2, "a", "b", "a", "c", "a", "b") == 4
    assert loads_of(3, "a", "b", "a", "c", "a", "b") == 3


def test_loads_come_one_at_a_time() -> None:
    env = Environment()
    ended: list[float] = []
    slots = ModelSlots(env, 4, LOAD_S, lambda: ended.append(env.now))
    wanted = {"a": 3.0, "b": 1.0}
    slots.arrange(wanted, ())
    slots.arrange(wanted, ())
    assert slots.resident == ("", "b")
    assert (slots.load_s("b"), slots.load_s(""), slots.holds("b")) == (LOAD_S, 0.0, False)
    env.run(LOAD_S + 0.1)
    slots.arrange(wanted, ())
    env.run(5.0)
    assert ended == pytest.approx([LOAD_S, 2 * LOAD_S + 0.1])
    assert slots.resident == ("", "b", "a")


def test_an_image_goes_where_its_model_is_unless_that_takes_longer() -> None:
    """After the second request both denoisers say what they hold: the configured model, and one has b too."""
    begun = 2 * ROUTING_STATS_PERIOD_S
    two = Replicas(1, 2, 1)

    def last(*before: Any) -> tuple[float, int]:
        simulated: Simulated = Simulation(model(cost=WITH_LOADS), two).run(
            [request(0.0, model="b"), *before, request(begun + 10, model="b")]
        )
        return simulated.outcomes[-1].latency_s, simulated.num_loads

    alone_s, loads = last()
    assert (alone_s, loads) == (pytest.approx(ALONE_S - 0.008, abs=1e-9), 1)
    # Where b is, 0.2 s of work come just before: less than a load. Then 1 s of work on each: no difference.
    for images in (1, 2):
        short = [request(begun + 10 - 0.01 * images, 20, model="b", num_images=images)]
        assert last(*short)[1] == 1, images
    long = request(begun + 9.99, 100, model="b", num_images=1)
    assert last(long)[1] == 2, "a load of 0.5 s is less than the second of work"


def test_a_plan_says_what_the_models_cost() -> None:
    goal = Goal(slo_s=3.0, percentile=95, price=3.6, max_gpus=4)
    times = poisson(3.0, 20.0, seed=2)
    load = [request(at, model=f"model {index % 4}") for index, at in enumerate(times)]
    served = model(cost=WITH_LOADS, denoiser={"max_models": 2}, limits={"max_queue": 1000})
    plan = plan_load(served, load, goal, quiet)
    assert plan.best is not None
    assert plan.best.num_loads > 4
    assert 0.05 < plan.best.waited_for_load < 1
    assert f"{plan.best.waited_for_load:.1%} of the requests wait for a load." in recommendation(plan, goal)
    assert str(options_table(plan, goal).columns[-1].header) == "waited\nfor load"
    assert title(load).endswith(", 4 models")
    one = plan_load(served, [replace(planned, model=None) for planned in load], goal, quiet)
    assert one.best is not None
    assert (one.best.num_loads, one.best.waited_for_load) == (0, 0.0)
    assert "load" not in recommendation(one, goal)
    assert len(options_table(one, goal).columns) == len(options_table(plan, goal).columns) - 1


def test_loads_take_no_time_where_costs_have_none() -> None:
    assert COST.load_s == 0.0
    simulated = Simulation(model(), ONE_EACH).run([request(0.0, model="b")])
    assert ends(simulated) == [pytest.approx(ALONE_S, abs=1e-12)]


def test_forwards_are_of_one_model() -> None:
    """Two images of one model share forwards of 18 ms; of two models they take turns of 10 ms."""
    room = model(cost=replace(COST, load_s=0.0), denoiser={"max_models": 2})
    shared = Simulation(room, ONE_EACH).run([request(0.0, model="b"), request(0.0, model="b")])
    apart = Simulation(room, ONE_EACH).run([request(0.0), request(0.0, model="b")])
    assert max(ends(apart)) - max(ends(shared)) == pytest.approx(20 * 0.002, abs=0.02)
    assert Curve.seconds(FORWARD, 4) == pytest.approx(0.018)
