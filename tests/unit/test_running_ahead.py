"""On a device that runs ahead, one step is launched before the previous one is done, and only one."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from deployments.engine import engine as engine_module
from deployments.engine.cost import Curve, StageCost
from deployments.engine.device_step import EagerSteps
from deployments.engine.engine import DeviceFaultError, Engine
from deployments.engine.engine_thread import EngineThread
from deployments.engine.messages import Checkpoint, DenoisedLatents, DenoiseEvent, DenoiseFailed
from deployments.engine.reports import StepReport
from deployments.engine.step_inputs import StepInputs
from tests.conftest import LoadedModel, finish
from tests.unit.test_least_slack import Simulation

Load = Callable[..., LoadedModel]
SLOW = Curve(2.0, 2, 0.0)


class HeldSteps(EagerSteps):
    """Steps of a real U-Net that are done when the test says so. Step n fails with faults[n]."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model.unet)
        self.launched: queue.SimpleQueue[int] = queue.SimpleQueue()  # the number of requests in each step
        self.waited_for: queue.SimpleQueue[Held] = queue.SimpleQueue()
        self.done = threading.Semaphore(0)
        self.says_done = False  # the answer when asked without waiting
        self.faults: dict[int, Exception] = {}
        self.num_launched = 0

    def launch(self, inputs: StepInputs) -> torch.Tensor:
        outputs = super().launch(inputs)
        self.launched.put(len(inputs.states))
        return outputs

    def completion(self) -> "Held":
        self.num_launched += 1
        return Held(self, self.faults.get(self.num_launched))


@dataclass
class Held:
    """The completion of a held step."""

    steps: HeldSteps
    fault: Exception | None

    def query(self) -> bool:
        return self.steps.says_done

    def synchronize(self) -> None:
        self.steps.waited_for.put(self)
        assert self.steps.done.acquire(timeout=60)
        if self.fault:
            raise self.fault


@pytest.fixture
def model(load_model: Load) -> LoadedModel:
    return load_model("sd1")


@pytest.fixture
def steps(model: LoadedModel) -> HeldSteps:
    return HeldSteps(model)


@pytest.fixture
def free(steps: HeldSteps) -> HeldSteps:
    """Steps that are not held back."""
    steps.done.release(1000)
    return steps


def ids(events: Sequence[DenoiseEvent]) -> list[str]:
    return [event.request_id for event in events]


def test_latents_are_the_same_bytes_whether_or_not_it_runs_ahead(model: LoadedModel, free: HeldSteps) -> None:
    latents = []
    for run_step in (free, EagerSteps(model.unet)):
        engine = model.engine(run_step)
        for sampler in ("Euler a", "DPM++ 2M", "Heun"):  # with different numbers of model calls
            engine.add(model.request(sampler, sampler=sampler, deterministic=True))
        latents.append(finish(engine))
    assert latents[0].keys() == latents[1].keys()
    for name, expected in latents[1].items():
        assert torch.equal(latents[0][name], expected), name


def test_one_step_is_launched_behind_the_one_under_way_and_no_more(
    model: LoadedModel, steps: HeldSteps
) -> None:
    deliveries: queue.SimpleQueue[StepReport] = queue.SimpleQueue()

    def deliver(report: StepReport) -> None:
        if report.forward is not None:
            deliveries.put(report)

    thread = EngineThread(lambda: model.engine(steps), deliver, pytest.fail)
    thread.start()
    thread.add([(model.request("a", num_inference_steps=4), ())])
    launched = []
    for _ in range(4):
        steps.waited_for.get(timeout=60)
        assert deliveries.empty()
        launched.append(steps.num_launched)
        steps.done.release()
        deliveries.get(timeout=60)
    assert launched == [2, 3, 4, 4]
    thread.stop()


def test_who_comes_while_a_step_is_under_way_joins_the_next(model: LoadedModel, free: HeldSteps) -> None:
    engine = model.engine(free)
    engine.add(model.request("first"))
    assert engine.step().forward is None, "the first is under way"
    engine.add(model.request("second"))
    assert engine.step().forward.num_requests == 1
    assert engine.step().forward.num_requests == 2


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Simulation]:
    """A device that runs ahead, with the cost SLOW and a request in its engine.

    Launches take no time.
    """

    def simulation(device: Curve) -> Simulation:
        simulation = Simulation(SLOW, device, runs_ahead=True)
        monkeypatch.setattr(engine_module, "time", SimpleNamespace(perf_counter=lambda: simulation.now))
        simulation.add("a", steps=3)
        return simulation

    return simulation


def test_the_next_step_is_due_when_a_tenth_of_the_time_is_left(
    simulate: Callable[..., Simulation],
) -> None:
    simulation = simulate(SLOW)
    engine = simulation.engine
    assert engine.due_in_s == 0.0, "nothing is under way"
    engine.step()
    assert engine.due_in_s == 0.01, "to look again"
    simulation.now += 1.795
    assert engine.due_in_s == pytest.approx(0.005)
    simulation.now += 0.006
    assert engine.due_in_s == 0.0

    assert engine.step().forward.seconds == pytest.approx(2.0)
    simulation.now += 1.795
    assert engine.due_in_s == pytest.approx(0.005), "counted from when the first was done"


def test_a_step_that_is_done_before_its_time_is_finished_then(simulate: Callable[..., Simulation]) -> None:
    simulation = simulate(Curve(1.0, 2, 0.0))
    engine = simulation.engine
    engine.step()
    simulation.now += 0.99
    assert engine.due_in_s == 0.01
    simulation.now += 0.02
    assert engine.due_in_s == 0.0
    assert engine.step().forward.seconds == pytest.approx(1.01)
    assert [item.call for item in engine.waiting] == [1], "the second is not launched yet"


def test_newcomers_are_taken_in_until_the_next_step_is_due(model: LoadedModel, steps: HeldSteps) -> None:
    """The step would take an hour by its cost, but the device is done earlier."""
    engine = model.engine(steps, cost=StageCost((((16, 16), Curve(3600.0, 2, 0.0)),)))
    thread = EngineThread(lambda: engine, lambda _: None, pytest.fail)
    thread.start()
    thread.add([(model.request("first"), ())])
    assert steps.launched.get(timeout=60) == 1
    thread.add([(model.request("second"), ())])
    steps.done.release(1000)
    steps.says_done = True
    assert steps.launched.get(timeout=60) == 2
    thread.stop()


def test_newcomers_are_waited_for_behind_a_last_step_as_well(simulate: Callable[..., Simulation]) -> None:
    simulation = simulate(SLOW)
    engine = simulation.engine
    for _ in range(3):
        engine.step()
    assert not engine.waiting, "the third and last is under way"
    assert engine.due_in_s > 0.0
    simulation.add("b", steps=3)
    engine.step()
    assert [item.call for item in engine.waiting] == [1]


def test_a_device_that_hangs_is_told_though_nobody_waits_for_it(model: LoadedModel, steps: HeldSteps) -> None:
    engine = model.engine(steps, cost=StageCost((((16, 16), Curve(3600.0, 2, 0.0)),)))
    thread = EngineThread(lambda: engine, lambda _: None, pytest.fail)
    thread.start()
    thread.add([(model.request("a"), ())])
    steps.launched.get(timeout=60)
    thread.abort("a")
    while engine.num_requests:
        time.sleep(0.001)
    problem = thread.problem(max_silence_s=0.0)
    assert problem is not None
    assert "no step has ended" in problem
    steps.done.release()
    steps.says_done = True
    while thread.problem(max_silence_s=0.0):
        time.sleep(0.001)
    thread.stop()


def test_nothing_is_told_of_a_request_that_has_left_meanwhile(model: LoadedModel, free: HeldSteps) -> None:
    """Its events are not taken for those of another request with the same id either."""
    engine = model.engine(free, checkpoint_interval_s=0.0)
    engine.add(model.request("a", num_inference_steps=2))
    engine.step()
    engine.abort("a")
    assert engine.step().events == []
    engine.add(model.request("a", num_inference_steps=2))
    engine.step()
    engine.abort("a")
    engine.add(model.request("a", num_inference_steps=3))
    assert engine.step().events == []
    assert engine.num_requests == 1
    assert [type(event) for event in engine.step().events] == [Checkpoint]


def test_an_isolated_request_is_so_until_its_checkpoint_is_there(model: LoadedModel, free: HeldSteps) -> None:
    engine = model.engine(free, checkpoint_interval_s=0.0)
    engine.add(model.request("suspect", num_inference_steps=5, isolated=True))
    engine.step()
    [suspect] = engine.waiting
    assert suspect.group.isolated == "suspect"
    assert ids(engine.step().events) == ["suspect"]
    assert suspect.group.isolated is None


class Told:
    """An engine thread on such a device, and the last event of each request."""

    def __init__(self, engine: Engine) -> None:
        self._ended: queue.SimpleQueue[DenoiseEvent] = queue.SimpleQueue()
        self.lost: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.thread = EngineThread(lambda: engine, self._deliver, self.lost.put)
        self.thread.start()

    def _deliver(self, report: StepReport) -> None:
        for event in report.events:
            if isinstance(event, DenoisedLatents | DenoiseFailed):
                self._ended.put(event)

    def last_events(self, number: int) -> dict[str, type[DenoiseEvent]]:
        ended = [self._ended.get(timeout=60) for _ in range(number)]
        assert self._ended.empty()
        return {event.request_id: type(event) for event in ended}


def test_a_step_that_fails_after_its_launch_is_the_end_of_the_device(
    model: LoadedModel, free: HeldSteps
) -> None:
    free.faults[3] = RuntimeError("an illegal memory access was encountered")
    told = Told(model.engine(free))
    told.thread.add([(model.request(name, num_inference_steps=8), ()) for name in "ab"])
    fault = "RuntimeError: an illegal memory access was encountered"
    assert told.lost.get(timeout=60) == f"DeviceFaultError: {fault}"
    told.thread.stop()
    assert told.last_events(0) == {}, "their callers go elsewhere"
    assert told.thread.problem(max_silence_s=60) == "the engine thread has ended"


def test_what_cannot_be_launched_for_what_broke_before_is_not_told_either(
    model: LoadedModel, free: HeldSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = free.launch
    free.faults[1] = RuntimeError("an illegal memory access was encountered")

    def breaks_from_the_second_on(inputs: StepInputs) -> torch.Tensor:
        if free.num_launched:
            raise RuntimeError("the device is broken")
        return launch(inputs)

    monkeypatch.setattr(free, "launch", breaks_from_the_second_on)
    engine = model.engine(free)
    engine.add(model.request("culprit"))
    engine.step()
    engine.add(model.request("large", height=64, width=64))
    with pytest.raises(DeviceFaultError, match="illegal memory access"):
        engine.step()


def test_a_step_that_cannot_be_launched_does_not_harm_the_one_under_way(
    model: LoadedModel, free: HeldSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, launched = free.launch, []

    def breaks_on_one(inputs: StepInputs) -> torch.Tensor:
        # On a machine that stands still for a while, the short one may go alone, for three steps.
        if len(inputs.states) == 1 and len(launched) >= 3:
            raise RuntimeError("what is this?")
        launched.append(inputs)
        return launch(inputs)

    monkeypatch.setattr(free, "launch", breaks_on_one)
    told = Told(model.engine(free))
    told.thread.add([(model.request("short", num_inference_steps=3), ()), (model.request("long"), ())])
    assert told.last_events(2) == {"short": DenoisedLatents, "long": DenoiseFailed}
    told.thread.stop()
