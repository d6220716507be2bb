"""Many models on one device: which is loaded next, how long they wait, and whose pictures come out."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Queue
from threading import Semaphore
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.cost import Curve, StageCost
from deployments.engine.device_step import EagerSteps, StepRunner
from deployments.engine.engine import Engine
from deployments.engine.engine_config import EngineConfig
from deployments.engine.engine_thread import EngineThread
from deployments.engine.fingerprint import model_ref
from deployments.engine.forward_costs import ForwardCosts
from deployments.engine.messages import DenoisedLatents, DenoiseFailed, DenoiseRequest
from deployments.engine.model_pool import (
    STAYS_FOR_LOADS,
    URGENT_BY_LOADS,
    KnownModel,
    ModelPool,
    OneModel,
    Slot,
    next_load,
)
from deployments.engine.model_source import (
    ModelLoadError,
    ModelRef,
    ModelSource,
    Placement,
    load_model_info,
)
from deployments.engine.models import load_unet
from deployments.engine.prompt_text import PromptText
from deployments.engine.reports import StepReport
from deployments.engine.samplers import SamplerTables
from deployments.engine.simulated import (
    SimulatedDevice,
    SimulatedLoader,
    SimulatedSteps,
    SimulatedTextEncoder,
)
from deployments.engine.stage_errors import Fault
from deployments.engine.unet_loader import DeviceLoader
from tests import tiny_models
from tests.conftest import LoadedModel, finish
from tests.generation_requests import denoise_request
from tests.tiny_models import SHAPES_MODEL

LOAD_S, NOW = 1.0, 1000.0
CPU = Placement(device="cpu")


def slot(model: str | None, loaded_at: float = 0.0, used_at: float = 0.0) -> Slot:
    return Slot(model, None, loaded_at, used_at)


def chosen(
    slacks: dict[str, float], slots: Sequence[Slot], busy: Sequence[str] = ()
) -> tuple[str, Any] | None:
    found = next_load(slacks, slots, busy, LOAD_S, NOW)
    return None if found is None else (found[0], found[1].model)


def test_the_most_urgent_model_takes_the_emptiest_place() -> None:
    assert chosen({"a": 5.0}, [slot("a")]) is None, "it is there"
    assert chosen({"b": 5.0, "c": 3.0}, [slot("a"), slot(None)]) == ("c", None)
    assert chosen({"b": 5.0}, [slot("a", used_at=2.0), slot("z", used_at=1.0)]) == ("b", "z")
    assert chosen({"b": 5.0}, [slot("a", used_at=1.0), slot("z", used_at=2.0)], busy=["a"]) == ("b", "z")
    two = [slot("a"), slot("z", loaded_at=NOW)]
    assert chosen({"b": 5.0}, two, busy=["a", "z"]) == ("b", "a"), "its last forward is under way"


def test_a_model_in_use_goes_only_for_a_much_more_urgent_one_and_not_at_once() -> None:
    just_now, long_ago = NOW - STAYS_FOR_LOADS * LOAD_S + 0.1, NOW - STAYS_FOR_LOADS * LOAD_S
    urgent, patient = 1.0, 1.1 + URGENT_BY_LOADS * LOAD_S
    assert chosen({"a": patient, "b": urgent}, [slot("a", long_ago)]) == ("b", "a")
    assert chosen({"a": patient, "b": urgent}, [slot("a", just_now)]) is None
    assert chosen({"a": patient - 0.2, "b": urgent}, [slot("a", long_ago)]) is None
    two = [slot("a", long_ago), slot("c", long_ago)]
    assert chosen({"a": patient, "c": patient + 1, "b": urgent}, two) == ("b", "c")


class VirtualLoads:
    """A pool and an engine in virtual time: loads end when the clock says so."""

    def __init__(self, num_models: int, num_slots: int, load_s: float, runs_ahead: bool = False) -> None:
        self.now = 1000.0
        self.load_s = load_s
        self.num_loads = 0
        self.refs = [ref(index) for index in range(num_models)]
        device = SimulatedDevice(lambda: self.now, self._sleep, runs_ahead)
        cost = StageCost((((16, 16), Curve(0.05, 2, 0.02)),))
        self._due: list[tuple[float, Callable[[], None]]] = []
        loader = SimulatedLoader(device, lambda _: cost, 0.0)
        self.pool = ModelPool(
            loader,
            lambda _: cost,
            num_slots,
            self,  # type: ignore[arg-type]
            lambda: None,
            (self.refs[0], SimulatedSteps(cost, device)),
            load_s,
            lambda: self.now,
        )
        for one in self.refs:
            self.pool.know(one)
        config = EngineConfig(16, 16, 8, (16, 16))
        self.engine = Engine(self.pool, config, lambda: self.now)

    def submit(self, load: Callable[[], Any]) -> Future[Any]:
        """In place of a thread."""
        done: Future[Any] = Future()
        self.num_loads += 1
        self._due.append((self.now + self.load_s, lambda: done.set_result(load())))
        return done

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def pass_time(self) -> None:
        """Ends the loads that are due; with nothing else to do, the clock moves on to the next one."""
        if self.engine.due_in_s is None and self._due:
            self.now = max(self.now, self._due[0][0])
        while self._due and self._due[0][0] <= self.now:
            self._due.pop(0)[1]()
            self.engine.arrange()  # as the engine's thread does after a load


def ref(index: int) -> ModelRef:
    source = ModelSource(str(SHAPES_MODEL))
    return ModelRef(source, *(f"{part}{index}" for part in ("digest", "text", "unet", "vae")))


EMBEDS = SimulatedTextEncoder(Curve(1e-9, 1, 0.0), is_xl=False)


def request(name: str, model: str, steps: int) -> Any:
    text = PromptText("a star", None, guided=True, deterministic=False)
    embeds = EMBEDS.assemble(text, EMBEDS.encode(EMBEDS.texts(text)))
    return denoise_request(name, embeds, steps, model=model)


@settings(max_examples=15, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.floats(0, 20), st.integers(0, 5), st.sampled_from([4, 20, 50])), min_size=1, max_size=25
    ),
    num_slots=st.integers(1, 3),
)
def test_every_request_of_more_models_than_places_ends_and_no_place_thrashes(
    arrivals: list[tuple[float, int, int]], num_slots: int
) -> None:
    loads = VirtualLoads(6, num_slots, load_s=0.5)
    began, waiting = loads.now, sorted(arrivals)
    names = iter(range(len(arrivals)))
    done: set[str] = set()
    while waiting or loads.engine.num_requests:
        if not loads.engine.num_requests:
            loads.now = max(loads.now, began + waiting[0][0])
        while waiting and began + waiting[0][0] <= loads.now:
            at, model, steps = waiting.pop(0)
            loads.engine.add(request(str(next(names)), f"unet{model}", steps), began + at)
        loads.pass_time()
        if loads.engine.due_in_s is not None:
            done |= {e.request_id for e in loads.engine.step().events if isinstance(e, DenoisedLatents)}
    assert len(done) == len(arrivals)
    # A load for each request at most, and one each way when a model in use gave its place up.
    given_up = num_slots * (loads.now - began) / (STAYS_FOR_LOADS * 0.5)
    assert loads.num_loads <= len(arrivals) + 2 * given_up


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_a_model_waits_no_longer_than_its_patience_and_a_few_loads(runs_ahead: bool) -> None:
    """One place, which a popular model keeps busy without a pause; another model gets it all the same."""
    loads = VirtualLoads(2, 1, 0.5, runs_ahead)
    index, first_seen, done_at = 0, loads.now, None
    loads.engine.add(request("rare", "unet1", 4))
    alone_s = 4 * 0.05
    while done_at is None and loads.now < first_seen + 120:
        popular = sum(name.startswith("p") for name in loads.engine._denoisings)
        while popular < 8:
            loads.engine.add(request(f"p{index}", "unet0", 20))
            index, popular = index + 1, popular + 1
        loads.pass_time()
        if loads.engine.due_in_s is not None:
            for event in loads.engine.step().events:
                if event.request_id == "rare" and isinstance(event, DenoisedLatents):
                    done_at = loads.now
    assert done_at is not None
    assert done_at - first_seen < 10 * (alone_s + 0.5) + (STAYS_FOR_LOADS + 2) * 0.5 + 20 * 0.1


@pytest.fixture(scope="module")
def folders(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of one architecture, and one of another."""
    second = tmp_path_factory.mktemp("second")
    tiny_models.build("sd1", seed=1).save_pretrained(second)
    return {"first": model_folder("sd1"), "second": second, "sd2": model_folder("sd2")}


class Real:
    """A pool of real models on this machine, with a thread that loads."""

    def __init__(self, folders: dict[str, Path], num_slots: int, loader: Any = None) -> None:
        self.models = {name: model_ref(ModelSource(str(folder))) for name, folder in folders.items()}
        self.loader = loader or DeviceLoader(CPU, (), 2)
        first = next(iter(self.models.values()))
        self.first = self.loader.load(first, None)
        cost = StageCost((((16, 16), Curve(0.012, 2, 0.0004)),))
        costs, thread = ForwardCosts(cost, first), ThreadPoolExecutor(1)
        self.loaded = Semaphore(0)
        self.pool = ModelPool(
            self.loader, costs.of, num_slots, thread, self.loaded.release, (first, self.first), 0.01
        )
        for one in self.models.values():
            self.pool.know(one)
        self.engine = Engine(self.pool, EngineConfig(16, 16, 8, (16, 16)))

    def add(self, name: str, request: DenoiseRequest) -> None:
        self.engine.add(replace(request, model=self.models[name].unet))

    def finish(self) -> dict[str, Any]:
        """Latents or failures by request."""
        ended: dict[str, Any] = {}
        while self.engine.num_requests:
            if self.engine.due_in_s is None:
                assert self.loaded.acquire(timeout=60), "nobody would wake the engine"
                self.engine.arrange()
                continue
            for event in self.engine.step().events:
                ended[event.request_id] = event
        return ended


def alone(folder: Path, requests: Sequence[DenoiseRequest]) -> dict[str, torch.Tensor]:
    """The latents of an engine with one model."""
    source = ModelSource(str(folder))
    unet, tables = load_unet(source, CPU), SamplerTables(load_model_info(source).scheduler_config)
    cost = StageCost((((16, 16), Curve(0.012, 2, 0.0004)),))
    models = OneModel(KnownModel(unet.shape, tables, cost), EagerSteps(unet))
    engine = Engine(models, EngineConfig(16, 16, 8, (16, 16)))
    for one in requests:
        engine.add(one)
    return finish(engine)


def test_each_picture_is_its_own_models_whatever_is_loaded_and_taken_away_meanwhile(
    folders: dict[str, Path], load_model: Callable[..., LoadedModel]
) -> None:
    """With one place and with two: deterministic bytes are those of an engine that has the model alone."""
    model = load_model("sd1")
    requests = {
        name: [model.request(f"{name}{seed}", seed=seed, deterministic=True) for seed in range(2)]
        for name in folders
    }
    expected = {name: alone(folder, requests[name]) for name, folder in folders.items()}
    assert not torch.equal(expected["first"]["first0"], expected["second"]["second0"])
    for num_slots in (1, 2):
        real = Real(folders, num_slots)
        for seed in range(2):
            for name in folders:
                real.add(name, requests[name][seed])
        ended = real.finish()
        for name in folders:
            for request_id, latents in expected[name].items():
                assert torch.equal(ended[request_id].latents, latents), (num_slots, request_id)


def test_a_model_of_the_same_architecture_takes_the_memory_of_the_one_before(
    folders: dict[str, Path], load_model: Callable[..., LoadedModel]
) -> None:
    """Captured and compiled code stays valid: the tensors keep their places."""
    real = Real(folders, 1)
    places = [tensor.data_ptr() for tensor in real.first.unet._module.state_dict().values()]
    real.add("second", load_model("sd1").request("a"))
    real.finish()
    assert real.pool.runner(real.models["second"].unet) is real.first
    assert [tensor.data_ptr() for tensor in real.first.unet._module.state_dict().values()] == places
    real.add("sd2", load_model("sd1").request("b"))
    real.finish()
    assert real.pool.runner(real.models["sd2"].unet) is not real.first


def test_a_model_gets_its_place_when_the_one_before_has_ended_and_nobody_else_comes(
    folders: dict[str, Path], load_model: Callable[..., LoadedModel]
) -> None:
    """On the engine's own thread, which sleeps while there is nothing to do."""
    real, ended = Real(folders, 1), Queue[str]()

    def deliver(report: StepReport) -> None:
        for event in report.events:
            if isinstance(event, DenoisedLatents | DenoiseFailed):
                ended.put(event.request_id)

    thread = EngineThread(lambda: real.engine, deliver, ended.put)
    real.pool._changed = thread.look
    thread.start()
    request = load_model("sd1").request("a", num_inference_steps=2)
    both = [replace(request, request_id=name, model=real.models[name].unet) for name in ("first", "second")]
    thread.add([(request, ()) for request in both])
    assert [ended.get(timeout=60) for _ in both] == ["first", "second"]
    # The same when the request that held the place leaves.
    first, second = (replace(one, request_id=f"{one.request_id} again") for one in both)
    thread.add([(replace(second, num_inference_steps=100, num_calls=100), ()), (first, ())])
    thread.abort(second.request_id)
    assert ended.get(timeout=60) == first.request_id
    thread.stop()


class BrokenLoader(DeviceLoader):
    """Fails for one folder."""

    broken: Path | None = None

    def load(self, model: ModelRef, into: StepRunner | None) -> Any:
        if model.source.path == str(self.broken):
            raise ModelLoadError("its unet is torn")
        return super().load(model, into)


def test_a_broken_model_fails_alone_and_is_tried_again_later(
    folders: dict[str, Path], load_model: Callable[..., LoadedModel]
) -> None:
    loader = BrokenLoader(CPU, (), 2)
    real = Real(folders, 2, loader)
    loader.broken = folders["second"]
    request = load_model("sd1").request("a")
    for name in ("first", "second", "sd2"):
        real.add(name, replace(request, request_id=name))
    ended = real.finish()
    failed = ended["second"]
    assert isinstance(failed, DenoiseFailed)
    assert failed.fault is Fault.UNLOADABLE
    assert "torn" not in failed.reason, "it might have a path"
    assert isinstance(ended["first"], DenoisedLatents)
    assert isinstance(ended["sd2"], DenoisedLatents)
    loader.broken = None
    real.add("second", replace(request, request_id="again"))
    assert isinstance(real.finish()["again"], DenoisedLatents)


def test_forwards_of_another_architecture_cost_in_proportion_to_their_operations(
    folders: dict[str, Path], model_folder: Callable[[str], Path]
) -> None:
    first = model_ref(ModelSource(str(folders["first"])))
    cost = StageCost((((32, 32), Curve(0.1, 1, 0.05)),))
    costs = ForwardCosts(cost, first)
    assert costs.of(model_ref(ModelSource(str(folders["second"])))) is cost
    larger = costs.of(model_ref(ModelSource(str(model_folder("shapes")))))
    factor = larger.seconds((32, 32), 3) / cost.seconds((32, 32), 3)
    assert factor == pytest.approx(larger.seconds((32, 32), 1) / cost.seconds((32, 32), 1))
    assert 5 < factor < 100, "6.6 million parameters against 0.2"
