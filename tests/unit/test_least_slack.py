"""Latency under load on a simulated device, whose clock moves only by what forwards cost: exact figures."""

from collections.abc import Callable

import pytest
import torch

from deployments.engine.cost import Curve, StageCost
from deployments.engine.denoising import Engine, EngineConfig
from deployments.engine.device_step import StepInputs
from deployments.engine.messages import DenoisedLatents
from deployments.engine.samplers import NUM_OUTPUTS
from deployments.engine.step_scheduler import PROMPTNESS
from tests.conftest import LoadedModel

SHAPE = (16, 16)
CPU_LIKE = Curve(base_s=0.010, flat_count=1, slope_s=0.00375)
GPU_LIKE = Curve(base_s=0.040, flat_count=2, slope_s=0.018)


class Simulated:
    """An engine whose forwards take the time that their curve says and give zeros."""

    def __init__(self, model: LoadedModel, curve: Curve) -> None:
        self.now = 1000.0
        self.curve = curve
        self.rows: list[int] = []
        config = EngineConfig(16, 16, 8, SHAPE)
        cost = StageCost(((SHAPE, curve),))
        self.engine = Engine(
            model.unet, self._run, model.tables, model.info.scale_factor, config, cost, lambda: self.now
        )
        self.finished: dict[str, float] = {}

    def _run(self, inputs: StepInputs) -> torch.Tensor:
        rows = len(inputs.request_of_row)
        self.rows.append(rows)
        self.now += self.curve.seconds(rows)
        return torch.zeros(len(inputs.states), NUM_OUTPUTS, *inputs.states.shape[2:])

    def step(self) -> None:
        for event in self.engine.step().events:
            if isinstance(event, DenoisedLatents):
                self.finished[event.request_id] = self.now


@pytest.mark.parametrize("curve", [CPU_LIKE, GPU_LIKE], ids=["CPU-like", "GPU-like"])
@pytest.mark.parametrize("steps", [2, 4, 8])
def test_a_burst_of_long_requests_does_not_make_a_short_one_slow(
    load_model: Callable[..., LoadedModel], curve: Curve, steps: int
) -> None:
    """It arrives just after a full forward has begun, behind forty that take 50 steps each."""
    model = load_model("sd1")
    simulated = Simulated(model, curve)
    for index in range(40):
        simulated.engine.add(model.request(f"long {index}", num_inference_steps=50))
    for _ in range(5):
        simulated.step()
    arrival = simulated.now
    simulated.step()
    assert simulated.rows == [16] * 6
    simulated.engine.add(model.request("short", num_inference_steps=steps), arrival)
    while "short" not in simulated.finished:
        simulated.step()
    unloaded_s = steps * curve.seconds(2)
    latency_s = simulated.finished["short"] - arrival
    if steps == 2:
        # One forward that had begun and two of its own, at least two rows wide: all that can be done.
        assert latency_s == pytest.approx(curve.seconds(16) + 2 * curve.seconds(simulated.rows[-1]))
    else:
        assert latency_s <= PROMPTNESS * unloaded_s


def test_the_long_ones_lose_little_by_it(load_model: Callable[..., LoadedModel]) -> None:
    model = load_model("sd1")
    finished = []
    for with_short in (False, True):
        simulated = Simulated(model, GPU_LIKE)
        for index in range(8):
            simulated.engine.add(model.request(f"long {index}", num_inference_steps=50))
        if with_short:
            simulated.engine.add(model.request("short", num_inference_steps=4))
        while simulated.engine.num_requests:
            simulated.step()
        finished.append(max(time for name, time in simulated.finished.items() if name != "short"))
    unloaded_s = 4 * GPU_LIKE.seconds(2)
    assert finished[1] - finished[0] <= PROMPTNESS * unloaded_s
