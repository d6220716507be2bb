"""The thread around the engine: joins and aborts between steps, faults reported and survived."""

import queue
from collections.abc import Callable, Iterator

import pytest
import torch

from deployments.engine.device_step import EagerSteps
from deployments.engine.engine import Engine
from deployments.engine.engine_thread import EngineThread
from deployments.engine.messages import DenoisedLatents, DenoiseEvent, DenoiseFailed
from deployments.engine.model_source import ModelLoadError
from deployments.engine.reports import ForwardReport, StepReport
from deployments.engine.stage_errors import Fault
from deployments.engine.step_inputs import StepInputs
from tests.conftest import LoadedModel


class Running:
    """An engine thread and its deliveries."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.run_step = EagerSteps(model.unet)
        self.engine = model.engine(self.run_step)
        self.deliveries: queue.SimpleQueue[StepReport] = queue.SimpleQueue()
        self.lost: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.thread = EngineThread(lambda: self.engine, self.deliveries.put, self.lost.put)
        self.thread.start()

    def until_last_event(self, request_id: str) -> tuple[DenoiseEvent, list[ForwardReport]]:
        forwards = []
        while True:
            report = self.deliveries.get(timeout=60)
            if report.forward is not None:
                forwards.append(report.forward)
            for event in report.events:
                if event.request_id == request_id and isinstance(event, DenoisedLatents | DenoiseFailed):
                    return event, forwards


@pytest.fixture
def running(load_model: Callable[..., LoadedModel]) -> Iterator[Running]:
    running = Running(load_model("sd1"))
    yield running
    running.thread.stop()


def test_requests_that_are_added_together_step_together(running: Running) -> None:
    requests = [running.model.request(name, num_inference_steps=3) for name in ("a", "b")]
    running.thread.add([(request, ()) for request in requests])
    event, forwards = running.until_last_event("b")
    assert isinstance(event, DenoisedLatents)
    assert [forward.num_requests for forward in forwards] == [2, 2, 2]


def test_an_abort_ends_the_steps(running: Running) -> None:
    running.thread.add([(running.model.request("endless", num_inference_steps=100), ())])
    running.deliveries.get(timeout=60)
    running.thread.abort("endless")
    running.thread.add([(running.model.request("next", num_inference_steps=2), ())])
    event, forwards = running.until_last_event("next")
    assert isinstance(event, DenoisedLatents)
    assert len(forwards) < 60
    assert forwards[-1].num_requests == 1


def test_a_request_that_cannot_be_taken_in_is_told(running: Running) -> None:
    running.thread.add([(running.model.request("bad", sampler="LCM", num_inference_steps=60), ())])
    event, _ = running.until_last_event("bad")
    assert isinstance(event, DenoiseFailed)
    assert "'LCM' at 60 steps" in event.reason


def test_a_broken_step_is_told(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("what is this?")

    monkeypatch.setattr(running.run_step, "launch", broken)
    running.thread.add([(running.model.request("a"), ())])
    event, _ = running.until_last_event("a")
    assert event == DenoiseFailed("a", "RuntimeError: what is this?", Fault.BROKEN)
    assert "request a failed" in caplog.text
    assert running.thread.problem(max_silence_s=60) is None


def test_a_broken_step_ends_its_own_requests_only(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large images break. Small ones that wait for their turn meanwhile do not."""
    launch = running.run_step.launch

    def breaks_on_large(inputs: StepInputs) -> torch.Tensor:
        if inputs.states.shape[-1] == 32:
            raise RuntimeError("what is this?")
        return launch(inputs)

    monkeypatch.setattr(running.run_step, "launch", breaks_on_large)
    small = running.model.request("small", num_inference_steps=12)
    running.thread.add([(small, ()), (running.model.request("large", height=64, width=64), ())])
    ends = {}
    while len(ends) < 2:
        events = running.deliveries.get(timeout=60).events
        ends |= {event.request_id: type(event) for event in events}
    assert ends == {"small": DenoisedLatents, "large": DenoiseFailed}


def test_an_engine_that_cannot_be_built_fails_the_start() -> None:
    def build() -> Engine:
        raise ModelLoadError("no such model")

    with pytest.raises(ModelLoadError, match="no such model"):
        EngineThread(build, lambda _: None, lambda _: None).start()


def test_a_thread_that_has_ended_is_ill(load_model: Callable[..., LoadedModel]) -> None:
    running = Running(load_model("sd1"))
    running.thread.stop()
    assert running.thread.problem(max_silence_s=60) == "the engine thread has ended"
