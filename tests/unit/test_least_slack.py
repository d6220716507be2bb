"""Latency under load on the simulated device, whose clock moves only by forwards: exact figures."""

import random
import statistics
from typing import Any

import pytest

from deployments.engine import step_scheduler
from deployments.engine.cost import Curve, StageCost
from deployments.engine.engine import Engine
from deployments.engine.engine_config import EngineConfig
from deployments.engine.messages import DenoisedLatents
from deployments.engine.model_pool import KnownModel, OneModel
from deployments.engine.prompt_text import PromptText
from deployments.engine.samplers import SamplerTables
from deployments.engine.simulated import SimulatedDevice, SimulatedSteps, SimulatedTextEncoder, SimulatedUNet
from deployments.engine.step_scheduler import PROMPTNESS
from tests.generation_requests import denoise_request
from tests.unit.test_samplers import STABLE_DIFFUSION

SHAPE = (16, 16)
CPU_LIKE = Curve(base_s=0.010, flat_count=1, slope_s=0.00375)
GPU_LIKE = Curve(base_s=0.040, flat_count=2, slope_s=0.018)
STEPS = {4: 0.2, 20: 0.4, 30: 0.3, 50: 0.1}
MEAN_STEPS = sum(steps * share for steps, share in STEPS.items())


class Simulation:
    """An engine on a simulated device, and the time when each request finished.

    curve: the cost of forwards that the engine assumes; device: their real cost, if different
    """

    def __init__(
        self, curve: Curve, device: Curve | None = None, runs_ahead: bool = False, **changes: Any
    ) -> None:
        self.now = 1000.0
        self.finished: dict[str, float] = {}
        self.rows: list[int] = []
        cost = StageCost(((SHAPE, curve),))
        unet = SimulatedUNet({"in_channels": 4, "out_channels": 4})
        timed = SimulatedDevice(lambda: self.now, self._sleep, runs_ahead)
        steps = SimulatedSteps(StageCost(((SHAPE, device or curve),)), timed)
        models = OneModel(KnownModel(unet, SamplerTables(STABLE_DIFFUSION), cost), steps)
        self.engine = Engine(models, EngineConfig(16, 16, 8, SHAPE, **changes), lambda: self.now)
        self._encoder = SimulatedTextEncoder(Curve(1e-9, 1, 0.0), is_xl=False)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def add(self, name: str, steps: int, arrival: float | None = None, **changes: Any) -> None:
        text = PromptText("a star", None, guided=True, deterministic=False)
        embeds = self._encoder.assemble(text, self._encoder.encode(self._encoder.texts(text)))
        request = denoise_request(name, embeds, steps, **changes)
        self.engine.add(request, arrival)

    def step(self) -> None:
        report = self.engine.step()
        self.rows.append(report.forward.rows)
        for event in report.events:
            if isinstance(event, DenoisedLatents):
                self.finished[event.request_id] = self.now

    def finish(self) -> None:
        while self.engine.num_requests:
            self.step()


@pytest.mark.parametrize("curve", [CPU_LIKE, GPU_LIKE], ids=["CPU-like", "GPU-like"])
@pytest.mark.parametrize("steps", [4, 8, 12])
def test_a_burst_of_long_requests_does_not_make_a_short_one_slow(curve: Curve, steps: int) -> None:
    """It arrives just after a nearly full forward has begun, among forty requests of 50 steps each."""
    simulation = Simulation(curve)
    for index in range(40):
        simulation.add(f"long {index}", 50)
    for _ in range(5):
        simulation.step()
    arrival = simulation.now
    simulation.step()
    assert min(simulation.rows) >= 14
    simulation.add("short", steps, arrival)
    simulation.finish()
    assert simulation.finished["short"] - arrival <= PROMPTNESS * steps * curve.seconds(2)


@pytest.mark.parametrize("load", [0.5, 0.8, 0.9])
def test_forwards_of_the_size_that_is_worth_it_have_lower_latencies_than_full_ones(
    load: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """load: share of the rows per second of full forwards"""
    worth_it_s = mean_latency_s(GPU_LIKE, load)
    monkeypatch.setattr(step_scheduler, "WAITING_WEIGHT", 1e9)  # only the device's efficiency counts
    assert worth_it_s < 0.95 * mean_latency_s(GPU_LIKE, load)


def mean_latency_s(curve: Curve, load: float) -> float:
    """The mean latency of an open load with 4 to 50 steps."""
    rng = random.Random(1)
    simulation = Simulation(curve)
    arrivals: dict[str, float] = {}
    rate = load * 16 / curve.seconds(16) / (2 * MEAN_STEPS)
    due = simulation.now
    for index in range(300):
        due += rng.expovariate(rate)
        while simulation.now < due and simulation.engine.num_requests:
            simulation.step()
        simulation.now = max(simulation.now, due)
        arrivals[f"{index}"] = due
        simulation.add(f"{index}", *rng.choices(list(STEPS), STEPS.values()), arrival=due)
    simulation.finish()
    return statistics.mean(simulation.finished[name] - arrival for name, arrival in arrivals.items())


def test_the_long_ones_lose_no_more_than_the_short_one_takes() -> None:
    finished = []
    for with_short in (False, True):
        simulation = Simulation(GPU_LIKE)
        for index in range(8):
            simulation.add(f"long {index}", 50)
        if with_short:
            simulation.add("short", 4)
        simulation.finish()
        finished.append(max(time for name, time in simulation.finished.items() if name != "short"))
    assert finished[1] - finished[0] <= PROMPTNESS * 4 * GPU_LIKE.seconds(2)


def test_a_request_with_a_deadline_overtakes_those_without() -> None:
    simulation = Simulation(GPU_LIKE)
    for index in range(16):
        simulation.add(f"patient {index}", 20)
    deadline = simulation.now + 20.5 * GPU_LIKE.seconds(16)  # it must be in the first batch, or it is late
    simulation.add("urgent", 20, deadline=deadline)
    simulation.finish()
    assert simulation.finished["urgent"] <= deadline < simulation.finished["patient 15"]


def test_priority_goes_first_among_equals() -> None:
    simulation = Simulation(GPU_LIKE)
    for index in range(16):
        simulation.add(f"plain {index}", 20)
    simulation.add("high", 20, priority=1)
    simulation.finish()
    assert simulation.finished["high"] == min(simulation.finished.values())
