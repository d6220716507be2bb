"""CUDA with models of real size and random weights: fidelity, determinism, captured steps."""

import queue
from collections.abc import Iterator

import pytest
import torch

from benchmarks.gpu import checks
from benchmarks.random_models import RandomModel, capture_failed
from deployments.engine.device_step import CapturedSteps, warm_up
from deployments.engine.engine_thread import EngineThread
from deployments.engine.messages import DenoisedLatents, DenoiseEvent
from deployments.engine.reports import StepReport
from tests.conftest import finish

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA = torch.device("cuda")


def captured_steps(model: RandomModel) -> CapturedSteps:
    return CapturedSteps(model.unet, [model.shape], capture_failed)


@pytest.fixture(params=["sd15", "sdxl"], scope="module")
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str) -> Iterator[RandomModel]:
    yield RandomModel.build(family, CUDA, torch.bfloat16)
    torch.cuda.empty_cache()


def test_float32_latents_are_those_of_diffusers_pipeline(family: str) -> None:
    assert checks.fidelity(family, CUDA)["max_difference"] < 1e-3


def test_captured_steps_give_the_bits_of_eager_ones(model: RandomModel) -> None:
    assert checks.captured_against_eager(model, captured_steps(model))["same_bits"]


def test_deterministic_latents_are_the_same_bytes_among_any_neighbours_in_any_process(
    model: RandomModel, family: str
) -> None:
    with checks.fingerprints_elsewhere(family, CUDA, torch.bfloat16) as elsewhere:
        here = checks.fingerprints(model, captured_steps(model))
        assert len({*here, *elsewhere()}) == 1


def test_resumed_from_any_step_the_bytes_are_the_same(model: RandomModel) -> None:
    resumed = checks.resumed_against_undisturbed(model, captured_steps(model))
    assert resumed["same_bits"]
    assert resumed["checkpoints"]


def test_a_late_joiner_is_near_what_it_is_alone(model: RandomModel) -> None:
    run_step = captured_steps(model)
    engine = model.engine(8, run_step)
    engine.add(model.request("wanted", 7, steps=4))
    [alone] = finish(engine).values()
    engine = model.engine(8, run_step)
    engine.add(model.request("neighbour", 8, steps=9))
    engine.step()
    engine.add(model.request("wanted", 7, steps=4))
    late = finish(engine)["wanted"]
    assert (late - alone).abs().mean() < 0.05 * alone.abs().mean()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_step_does_not_wait_for_the_device(model: RandomModel) -> None:
    """It only waits for the event that says that it is done, even for new requests and finished latents."""
    run_step = captured_steps(model)
    for rows in (8, 2):  # capturing a shape waits
        warm_up(model.unet.shape, run_step, model.shape, rows)
    engine = model.engine(8, run_step)
    for index in range(3):
        engine.add(model.request(str(index), index, steps=6))
    newcomer = model.request("newcomer", 9, steps=6)
    engine.step()
    engine.step()
    try:
        torch.cuda.set_sync_debug_mode("error")
        engine.step()
        engine.add(newcomer)
        latents = finish(engine)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(latents) == 4


def test_the_engine_thread_gives_what_the_engine_gives(model: RandomModel) -> None:
    """The thread launches ahead of the device by the clock, and asks the device whether it is done."""
    run_step = captured_steps(model)
    requests = [model.request(str(index), index, steps=4 + index, deterministic=True) for index in range(4)]
    engine = model.engine(8, run_step)
    for request in requests:
        engine.add(request)
    expected = finish(engine)

    events: queue.SimpleQueue[DenoiseEvent] = queue.SimpleQueue()

    def deliver(report: StepReport) -> None:
        for event in report.events:
            events.put(event)

    thread = EngineThread(lambda: model.engine(8, run_step), deliver, pytest.fail)
    thread.start()
    for request in requests:
        thread.add([(request, ())])
    for _ in requests:
        event = events.get(timeout=60)
        assert isinstance(event, DenoisedLatents)
        assert torch.equal(event.latents, expected[event.request_id])
    thread.stop()
