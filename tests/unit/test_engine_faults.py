"""The engine on a device that fails, that has too little memory, or that gives NaN and infinity."""

import queue
from collections.abc import Callable, Iterator

import pytest
import torch

from deployments.engine import engine as engine_module
from deployments.engine import fitting as fitting_module
from deployments.engine.device_faults import DeviceFaultError
from deployments.engine.device_step import Completion, EagerSteps
from deployments.engine.engine import Engine
from deployments.engine.engine_thread import EngineThread
from deployments.engine.messages import Checkpoint, DenoisedLatents, DenoiseFailed
from deployments.engine.reports import StepReport
from deployments.engine.stage_errors import Fault
from deployments.engine.step_inputs import StepInputs
from tests.conftest import LoadedModel, finish

Load = Callable[..., LoadedModel]
ILLEGAL = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


class SmallDevice(EagerSteps):
    """Forwards with more rows do not fit."""

    def __init__(self, model: LoadedModel, most: int) -> None:
        super().__init__(model.unet)
        self.most = most
        self.tried: list[int] = []

    def launch(self, inputs: StepInputs) -> torch.Tensor:
        rows = len(inputs.request_of_row)
        self.tried.append(rows)
        if rows > self.most:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {rows} rows")
        return super().launch(inputs)


@pytest.fixture
def model(load_model: Load) -> LoadedModel:
    return load_model("shapes")


@pytest.mark.parametrize("row_counts", [(), (2, 4, 8, 16)], ids=["unpadded", "padded"])
def test_a_forward_that_does_not_fit_is_made_smaller_and_stays_so(
    model: LoadedModel, row_counts: tuple[int, ...]
) -> None:
    """Every step has noise. Each request keeps its own noise even if its call is made twice."""
    requests = [
        model.request(str(index), seed=index, sampler="Euler a", num_inference_steps=3) for index in range(4)
    ]
    alone = {}
    for request in requests:
        engine = model.engine()
        engine.add(request)
        alone |= finish(engine)
    device = SmallDevice(model, most=5)
    engine = model.engine(device, row_counts=row_counts)
    for request in requests:
        engine.add(request)
    latents = finish(engine)
    assert device.tried == [8, *6 * [4]]
    for name, expected in alone.items():
        assert (latents[name] - expected).abs().max() < 2e-4 * expected.abs().max(), name


def test_only_a_request_that_does_not_fit_alone_is_refused(model: LoadedModel) -> None:
    device = SmallDevice(model, most=1)
    engine = model.engine(device)
    engine.add(model.request("guided"))
    engine.add(model.request("plain", guidance_scale=1.0, num_inference_steps=2))
    events = []
    while engine.num_requests:
        events += engine.step().events
    # The step scheduler decides whose turn comes first.
    [refused] = [event for event in events if isinstance(event, DenoiseFailed)]
    [done] = [event for event in events if isinstance(event, DenoisedLatents)]
    assert len(events) == 2
    assert (refused.request_id, refused.fault) == ("guided", Fault.OUT_OF_MEMORY)
    assert "too little memory" in refused.reason
    assert done.request_id == "plain"


def test_deterministic_forwards_keep_their_size(model: LoadedModel) -> None:
    """At another size their bytes would differ, so trying smaller forwards would not help."""
    device = SmallDevice(model, most=4)
    engine = model.engine(device)
    for index in range(2):
        engine.add(model.request(str(index), deterministic=True))
    events = engine.step().events
    assert [event.fault for event in events] == 2 * [Fault.OUT_OF_MEMORY]
    assert device.tried == [8]
    engine.add(model.request("plain", num_inference_steps=2))
    assert set(finish(engine)) == {"plain"}


def test_memory_that_somebody_else_has_taken_is_the_end_of_the_device(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting_module.time, "sleep", lambda seconds: None)
    device = SmallDevice(model, most=4)
    engine = model.engine(device)
    engine.add(model.request("a"))
    engine.step()
    device.most = 0
    with pytest.raises(DeviceFaultError, match=r"2 rows .* had fitted"):
        engine.step()
    assert device.tried == 5 * [2]


def test_so_it_is_where_there_is_no_memory_for_a_newcomer(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting_module.time, "sleep", lambda seconds: None)
    engine = model.engine()

    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "begin", no_room)
        with pytest.raises(torch.OutOfMemoryError):
            engine.add(model.request("too large"))
    engine.add(model.request("a"))
    engine.step()
    monkeypatch.setattr(engine_module, "begin", no_room)
    with pytest.raises(DeviceFaultError, match="had fitted"):
        engine.add(model.request("b"))


class Odd(EagerSteps):
    """Breaks forwards with an odd number of rows."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model.unet)
        self.tried: list[int] = []

    def launch(self, inputs: StepInputs) -> torch.Tensor:
        rows = len(inputs.request_of_row)
        self.tried.append(rows)
        if rows % 2:
            raise ZeroDivisionError("why?")
        return super().launch(inputs)


def test_of_a_forward_that_breaks_each_request_is_tried_alone(model: LoadedModel) -> None:
    """The faulty one has one row, and breaks every forward with an odd number of rows."""
    device = Odd(model)
    engine = model.engine(device)
    for index in range(3):
        engine.add(model.request(str(index), num_inference_steps=3))
    engine.add(model.request("poison", guidance_scale=1.0, num_inference_steps=3))
    events = []
    while engine.num_requests:
        events += engine.step().events
    [failed] = [event for event in events if isinstance(event, DenoiseFailed)]
    assert (failed.request_id, failed.reason, failed.fault) == (
        "poison",
        "ZeroDivisionError: why?",
        Fault.BROKEN,
    )
    assert {event.request_id for event in events if isinstance(event, DenoisedLatents)} == {"0", "1", "2"}
    assert device.tried[0] == 7
    assert sorted(device.tried[1:]) == [1, *9 * [2]]


class NoRoomForEvents(EagerSteps):
    """Memory runs out after a forward is launched."""

    def completion(self) -> Completion:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_forward_that_was_launched_is_not_made_again(model: LoadedModel) -> None:
    """Its requests have moved on, so launching it again would be another step."""
    engine = model.engine(NoRoomForEvents(model.unet))
    engine.add(model.request("a"))
    with pytest.raises(torch.OutOfMemoryError):
        engine.step()
    assert [item.call for item in engine.waiting] == [1]


class Overflowing(EagerSteps):
    """Acts like a float16 U-Net that overflows: the first request's states are not finite."""

    def launch(self, inputs: StepInputs) -> torch.Tensor:
        outputs = super().launch(inputs)
        outputs[0] = torch.inf - torch.inf
        return outputs


@pytest.mark.parametrize("checkpoint_interval_s", [0.0, None])
def test_values_that_are_no_numbers_fail_their_own_request_only(
    model: LoadedModel, checkpoint_interval_s: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure comes when the values are first looked at: with a checkpoint, or at the end."""
    engine = model.engine(Overflowing(model.unet), checkpoint_interval_s=checkpoint_interval_s)
    engine.add(model.request("overflowing", num_inference_steps=4, deadline=1.0))
    engine.add(model.request("sound", num_inference_steps=4))
    failed, first = [], engine.step().events
    assert [type(event) for event in first] == (
        [DenoiseFailed, Checkpoint] if checkpoint_interval_s == 0 else []
    )
    events = list(first)
    while "overflowing" in {item.request.request_id for item in engine.waiting}:
        events += engine.step().events
    failed = [event for event in events if isinstance(event, DenoiseFailed)]
    assert [(event.request_id, event.fault) for event in failed] == [("overflowing", Fault.NOT_FINITE)]
    assert "The U-Net gave values that are not numbers" in failed[0].reason
    assert "bfloat16" in failed[0].reason
    assert "request overflowing failed" in caplog.text


class Broken(EagerSteps):
    """A device that is lost while idle: every later call fails."""

    is_lost = False

    def launch(self, inputs: StepInputs) -> torch.Tensor:
        if self.is_lost:
            raise ILLEGAL
        return super().launch(inputs)


def test_a_lost_device_ends_the_engine_and_nobody_is_told(model: LoadedModel) -> None:
    device = Broken(model.unet)
    engine = model.engine(device)
    engine.add(model.request("a"))
    engine.step()
    device.is_lost = True
    with pytest.raises(DeviceFaultError, match="AcceleratorError: CUDA error: an illegal memory access"):
        engine.step()


class Thread:
    def __init__(self, engine: Engine) -> None:
        self.told: queue.SimpleQueue[StepReport] = queue.SimpleQueue()
        self.lost: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.thread = EngineThread(lambda: engine, self.told.put, self.lost.put)
        self.thread.start()


@pytest.fixture
def thread(model: LoadedModel) -> Iterator[Thread]:
    thread = Thread(model.engine())
    yield thread
    thread.thread.stop()


def test_a_device_that_was_lost_while_idle_fails_no_newcomer(
    thread: Thread, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get no failure: their callers see a dead replica and call another one."""

    def lost(*_: object) -> None:
        raise ILLEGAL

    monkeypatch.setattr(Engine, "add", lost)
    thread.thread.add([(model.request("a"), ()), (model.request("b"), ())])
    assert "illegal memory access" in thread.lost.get(timeout=60)
    assert thread.told.empty()


def test_a_request_that_cannot_be_had_is_refused_and_the_thread_goes_on(
    thread: Thread, model: LoadedModel
) -> None:
    thread.thread.add([(model.request("bad", sampler="LCM", num_inference_steps=60), ())])
    [refused] = thread.told.get(timeout=60).events
    assert isinstance(refused, DenoiseFailed)
    assert refused.fault is Fault.REFUSED
    assert thread.lost.empty()
    assert thread.thread.problem(max_silence_s=60) is None
