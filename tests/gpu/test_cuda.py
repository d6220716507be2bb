"""CUDA with models of real size and random weights: fidelity, determinism, captured steps."""

import queue
from collections.abc import Iterator

import pytest
import torch

from benchmarks.random_models import RandomModel
from deployments.engine.device_step import CapturedSteps, EagerSteps, warm_up
from deployments.engine.engine_thread import EngineThread
from deployments.engine.messages import DenoisedLatents, DenoiseEvent
from deployments.engine.reports import StepReport
from tests.conftest import finish

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def captured_steps(model: RandomModel) -> CapturedSteps:
    return CapturedSteps(model.unet, [(model.side, model.side)])


@pytest.fixture(params=["sd15", "sdxl"], scope="module")
def model(request: pytest.FixtureRequest) -> Iterator[RandomModel]:
    yield RandomModel.build(request.param, torch.device("cuda"), torch.bfloat16)
    torch.cuda.empty_cache()


def test_deterministic_latents_are_the_same_bytes_among_any_neighbours(model: RandomModel) -> None:
    run_step = captured_steps(model)
    engine = model.engine(8, run_step)
    engine.add(model.request("alone", 7, steps=4, deterministic=True))
    results = list(finish(engine).values())
    for place in range(4):
        engine = model.engine(8, run_step)
        for index in range(4):
            seed = 7 if index == place else 100 + 10 * place + index
            name = "wanted" if index == place else f"other {index}"
            engine.add(model.request(name, seed, steps=4, deterministic=True))
        results.append(finish(engine)["wanted"])
    assert all(torch.equal(result, results[0]) for result in results)


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


def test_a_captured_step_gives_what_an_eager_one_gives(model: RandomModel) -> None:
    """As requests finish, the graphs of 8, 4 and 2 rows take turns, three times over. If one of them left
    anything behind in their shared memory, it would show."""
    captured, eager = captured_steps(model), EagerSteps(model.unet)
    for seed in range(3):
        latents = []
        for run_step in (captured, eager):
            engine = model.engine(8, run_step)
            for index in range(4):
                engine.add(model.request(str(index), 10 * seed + index, steps=2 + index))
            latents.append(finish(engine))
        for name, expected in latents[1].items():
            assert (latents[0][name] - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_a_step_does_not_wait_for_the_device(model: RandomModel) -> None:
    """It only waits for the event that says that it is done, even for new requests and finished latents."""
    run_step = captured_steps(model)
    for rows in (8, 2):  # capturing a shape waits
        warm_up(model.unet.shape, run_step, (model.side, model.side), rows)
    engine = model.engine(8, run_step)
    for index in range(3):
        engine.add(model.request(str(index), index, steps=6))
    newcomer = model.request("newcomer", 9, steps=6)
    engine.step()
    engine.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
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


def test_float32_latents_are_those_of_the_stock_scheduler() -> None:
    model = RandomModel.build("sd15", torch.device("cuda"), torch.float32)
    request = model.request("image", 7, steps=4)
    engine = model.engine(8)
    engine.add(request)
    [latents] = finish(engine).values()

    scheduler = model.tables.scheduler(request.sampler)
    scheduler.set_timesteps(request.num_inference_steps, device="cuda")
    generator = torch.Generator().manual_seed(7)
    expected = torch.randn(1, 4, 64, 64, generator=generator).cuda() * scheduler.init_noise_sigma
    negative = request.embeds.negative_prompt_embeds
    assert negative is not None
    embeds = torch.stack([negative, request.embeds.prompt_embeds]).cuda()
    for timestep in scheduler.timesteps:
        rows = scheduler.scale_model_input(torch.cat([expected] * 2), timestep)
        with torch.inference_mode():
            unconditional, conditional = model.module(rows, timestep, embeds).sample.chunk(2)
        output = unconditional + request.guidance_scale * (conditional - unconditional)
        expected = scheduler.step(output, timestep, expected, generator=generator).prev_sample
    assert (latents - expected[0].cpu()).abs().max() < 1e-3 * expected.abs().max()
