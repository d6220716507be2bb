"""Steps on CUDA, on a stand-in for it: captured graphs, captures that fail, and noise that is not drawn."""

import logging
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deployments.engine import device_step
from deployments.engine.device_faults import DeviceFaultError
from deployments.engine.device_step import CapturedSteps, Completion, EagerSteps, denoise_step, warm_up
from deployments.engine.engine import Engine
from deployments.engine.step_inputs import StepInputs
from tests.conftest import LoadedModel, finish
from tests.fake_cuda import Cuda, Graph, Stream

SHAPE, ROW_COUNTS = (16, 16), (2, 4, 8, 16)
NOT_PERMITTED = torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    replaced: dict[str, Any] = {
        "CUDAGraph": lambda: Graph(cuda),
        "Stream": lambda device: Stream(),
        "current_stream": lambda device: cuda.stream,
        "graph_pool_handle": cuda.pool,
        "stream": cuda.on,
        "synchronize": cuda.synchronize,
    }
    for name, replacement in replaced.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", cuda.release)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    monkeypatch.setattr(device_step, "pinned", lambda tensor: tensor)
    monkeypatch.setattr(device_step, "send", cuda.send)
    return cuda


class Unet:
    """A U-Net that raises the device's fault under capture. most: rows that fit otherwise"""

    def __init__(self, model: LoadedModel, cuda: Cuda) -> None:
        self._unet = model.unet
        self._cuda = cuda
        self.most = 64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def __call__(self, latents: torch.Tensor, *inputs: Any) -> torch.Tensor:
        if self._cuda.is_capturing and self._cuda.fault is not None:
            raise self._cuda.fault
        if len(latents) > self.most:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {len(latents)} rows")
        prediction: torch.Tensor = self._unet(latents, *inputs)
        return prediction


class PlainSteps:
    """Runs each step as it is, with all rows at once as on CUDA, and keeps its inputs."""

    def __init__(self, model: LoadedModel) -> None:
        self._unet = model.unet
        self.bank = model.unet.bank
        self.inputs: list[StepInputs] = []

    def launch(self, inputs: StepInputs) -> torch.Tensor:
        self.inputs.append(inputs)
        return denoise_step(self._unet, inputs)

    def completion(self) -> Completion:
        return device_step._Done()


@pytest.fixture
def model(load_model: Callable[..., LoadedModel]) -> LoadedModel:
    return load_model("shapes")


class Failures:
    count = 0

    def __call__(self) -> None:
        self.count += 1


def captured(model: LoadedModel, cuda: Cuda, failed: Callable[[], None] = pytest.fail) -> CapturedSteps:
    return CapturedSteps(Unet(model, cuda), [SHAPE], failed)  # type: ignore[arg-type]


def denoise(engine: Engine, model: LoadedModel, *samplers: str) -> dict[str, torch.Tensor]:
    """Latents of a request for each sampler, with different numbers of steps."""
    for index, sampler in enumerate(samplers):
        request = model.request(str(index), seed=index, sampler=sampler, num_inference_steps=2 + index)
        engine.add(request)
    latents = finish(engine)
    assert len(latents) == len(samplers)
    return latents


@pytest.mark.parametrize("row_counts", [(), ROW_COUNTS], ids=["unpadded", "padded"])
def test_noise_that_no_request_draws_is_one_value_each(
    model: LoadedModel, row_counts: tuple[int, ...]
) -> None:
    """So nothing large is made and sent. The bits are those of zeros in full."""
    plain = PlainSteps(model)
    denoise(model.engine(plain, row_counts=row_counts), model, "Euler", "DPM++ 2M", "Heun")
    with torch.inference_mode():
        for inputs in plain.inputs:
            assert inputs.noise.shape == (len(inputs.states), 1, 1, 1)
            full = replace(inputs, noise=torch.zeros_like(inputs.states[:, 0]))
            results = [denoise_step(model.unet, one) for one in (inputs, full)]
            assert torch.equal(*(result.view(torch.int32) for result in results))


def test_noise_is_of_those_who_draw_it(model: LoadedModel) -> None:
    plain = PlainSteps(model)
    engine = model.engine(plain, row_counts=ROW_COUNTS)
    denoise(engine, model, "Euler", "Euler a", "Euler")
    first = plain.inputs[0].noise
    assert first.shape == plain.inputs[0].states[:, 0].shape
    assert len(first) == 8, "six rows are padded to eight, and the requests as well"
    assert [bool(one.any()) for one in first] == [False, True, *6 * [False]]


def test_captured_steps_give_the_bits_of_plain_ones(model: LoadedModel, cuda: Cuda) -> None:
    """The same graphs serve steps with noise and without."""
    run_steps = (captured(model, cuda), PlainSteps(model))
    for samplers in (("Euler a", "Euler a"), ("Euler", "Euler"), ("Euler", "Euler a", "DPM++ 2M SDE")):
        latents, expected = (
            denoise(model.engine(run_step, row_counts=ROW_COUNTS), model, *samplers) for run_step in run_steps
        )
        assert all(torch.equal(latents[name], value) for name, value in expected.items())
    assert cuda.uses == {1: 3}, "one graph each for 8, 4 and 2 rows, in one pool, with noise and without"


def test_captured_steps_are_sent_no_zeros(model: LoadedModel, cuda: Cuda) -> None:
    denoise(model.engine(captured(model, cuda), row_counts=ROW_COUNTS), model, "Euler")
    assert set(cuda.sent) == {(2, 1, 1, 1)}


def test_a_size_that_is_not_captured_is_not_padded(model: LoadedModel, cuda: Cuda) -> None:
    """Neither its rows nor its requests."""
    plain = PlainSteps(model)
    engine = model.engine(plain, row_counts=ROW_COUNTS)
    for index in range(3):
        engine.add(model.request(str(index), width=24 * model.info.scale_factor))
    report = engine.step().forward
    assert (report.rows, report.forward_rows) == (6, 6)
    [inputs] = plain.inputs
    assert len(inputs.states) == 3
    assert len(inputs.request_of_row) == 6


def test_deterministic_forwards_are_padded_in_every_size(model: LoadedModel) -> None:
    plain = PlainSteps(model)
    engine = model.engine(plain, row_counts=ROW_COUNTS)
    engine.add(model.request("a", width=24 * model.info.scale_factor, deterministic=True))
    engine.step()
    [inputs] = plain.inputs
    assert len(inputs.states) == len(inputs.request_of_row) == 8


@pytest.mark.parametrize("ends", [True, False], ids=["ends", "is invalid"])
@pytest.mark.parametrize(
    "fault",
    [
        ValueError("cannot be captured"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDNN_STATUS_EXECUTION_FAILED"),
        NOT_PERMITTED,
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_shape_whose_capture_fails_runs_eagerly(
    model: LoadedModel, cuda: Cuda, fault: Exception, ends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once with the reason, and counted. Other shapes are captured afterwards."""
    failed = Failures()
    run_step = captured(model, cuda, failed)
    cuda.fault, cuda.ends = fault, ends
    latents = denoise(model.engine(run_step, row_counts=ROW_COUNTS), model, "Euler a")
    expected = denoise(model.engine(EagerSteps(model.unet)), model, "Euler a")
    assert torch.equal(latents["0"], expected["0"])
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "2 rows at 16x16 with adapters of rank 0 could not be captured" in record.message
    assert str(fault) in caplog.text
    assert failed.count == 1
    assert cuda.stream is cuda.default
    assert not cuda.recording
    assert not any(cuda.uses.values()), "nothing holds the memory of the failed capture"

    cuda.fault = None
    denoise(model.engine(run_step, row_counts=ROW_COUNTS), model, "Euler a", "Euler")
    assert failed.count == 1
    assert cuda.uses == {1: 0, 2: 1}, "the graph of 4 rows; that of 2 is not tried again"


def test_a_graph_whose_capture_has_not_ended_is_kept(
    model: LoadedModel, cuda: Cuda, caplog: pytest.LogCaptureFixture
) -> None:
    """An allocator goes on pointing at it."""
    caplog.set_level(logging.CRITICAL, "ray.serve")  # a record of the error would keep it as well
    run_step = captured(model, cuda, Failures())
    cuda.fault, cuda.ends = ValueError("cannot be captured"), False
    warm_up(model.unet.shape, run_step, SHAPE, 2)
    cuda.fault = None
    warm_up(model.unet.shape, run_step, SHAPE, 4)
    [graph] = cuda.pointed_at
    assert graph() is not None


def test_a_failed_capture_leaves_the_graphs_before_it(model: LoadedModel, cuda: Cuda) -> None:
    failed = Failures()
    run_step = captured(model, cuda, failed)
    warm_up(model.unet.shape, run_step, SHAPE, 4)
    cuda.fault, cuda.ends = NOT_PERMITTED, False
    latents = denoise(model.engine(run_step, row_counts=ROW_COUNTS), model, "Euler a", "Euler")
    expected = denoise(model.engine(PlainSteps(model), row_counts=ROW_COUNTS), model, "Euler a", "Euler")
    assert all(torch.equal(latents[name], value) for name, value in expected.items())
    assert failed.count == 1
    assert cuda.uses == {1: 1}


def test_a_device_that_is_lost_in_a_capture_is_the_end_of_the_engine(model: LoadedModel, cuda: Cuda) -> None:
    engine = model.engine(captured(model, cuda), row_counts=ROW_COUNTS)
    engine.add(model.request("a"))
    cuda.fault, cuda.ends, cuda.is_lost = NOT_PERMITTED, False, True
    with pytest.raises(DeviceFaultError, match="an illegal memory access"):
        engine.step()


def test_a_step_that_does_not_fit_is_made_smaller_and_not_given_up(model: LoadedModel, cuda: Cuda) -> None:
    """It does not fit without a capture either."""
    run_step = captured(model, cuda)
    run_step.unet.most = 2  # type: ignore[attr-defined]
    denoise(model.engine(run_step, row_counts=ROW_COUNTS), model, "Euler", "Euler")
    assert cuda.uses == {1: 1}


def test_a_thread_that_waits_for_cuda_does_not_spin(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    class Event:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def record(self, stream: Any) -> None:
            assert stream == "the current one"

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the current one")
    EagerSteps(SimpleNamespace(device=torch.device("cuda"), bank=None)).completion()  # type: ignore[arg-type]
    assert made == [{"blocking": True}]
