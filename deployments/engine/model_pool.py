"""The models that an engine holds on its device: which ones are resident, and which is loaded next.

There are fewer slots than models. A slot is a U-Net's memory on the device with its step runner. Loading
another model of the same architecture copies its weights into the slot, so that captured and compiled code
stays valid. The state of a request does not live in a slot, so its model may go and come back in mid-run.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from deployments.engine.conditions import UNetInterface
from deployments.engine.cost import StageCost
from deployments.engine.device_faults import DeviceFaultError, is_device_fault, is_out_of_memory
from deployments.engine.device_step import StepRunner
from deployments.engine.model_source import ModelRef, load_model_info
from deployments.engine.samplers import SamplerTables
from deployments.engine.stage_errors import Fault, StageError, unloadable

logger = logging.getLogger(__name__)

# A model whose requests are under way gives its slot up only for one that is more urgent by this many loads,
# and only after it has been there for as many loads as below. So at most a tenth of the time goes into loads.
URGENT_BY_LOADS = 2.0
STAYS_FOR_LOADS = 10.0
_NEWEST = 0.5  # weight of the newest load in the mean of load seconds


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What is known of a model before its weights are there. unet: without weights; cost: of its forwards"""

    unet: UNetInterface
    tables: SamplerTables
    cost: StageCost


class Models(Protocol):
    """The models as the engine sees them, each by the digest of its U-Net."""

    def known(self, model: str) -> KnownModel: ...

    def runner(self, model: str) -> StepRunner | None:
        """The runner of a resident model."""
        ...

    def failure(self, model: str) -> StageError | None:
        """Why the model could not be loaded for those that wait for it."""
        ...

    def load_s(self, model: str) -> float:
        """Seconds until the model should be resident; 0 if it is."""
        ...

    def arrange(self, slacks: Mapping[str, float], busy: Collection[str], now: float) -> None:
        """Takes in what was loaded, and begins to load what is needed most.

        slacks: for each model with waiting requests, the seconds that the most urgent can still wait
        busy: models with a forward under way
        """
        ...


@dataclass(frozen=True, slots=True)
class OneModel:
    """The only model of an engine, always resident."""

    model: KnownModel
    run_step: StepRunner

    def known(self, model: str) -> KnownModel:
        return self.model

    def runner(self, model: str) -> StepRunner | None:
        return self.run_step

    def failure(self, model: str) -> StageError | None:
        return None

    def load_s(self, model: str) -> float:
        return 0.0

    def arrange(self, slacks: Mapping[str, float], busy: Collection[str], now: float) -> None:
        pass


@dataclass(eq=False, slots=True)
class Slot:
    """A place for a model on the device.

    model: the resident one; None while it is empty or being loaded
    run_step: of what is in its memory, whichever model that is
    loaded_at, used_at: on the engine's clock
    """

    model: str | None = None
    run_step: StepRunner | None = None
    loaded_at: float = -float("inf")
    used_at: float = -float("inf")


def next_load(
    slacks: Mapping[str, float], slots: Sequence[Slot], busy: Collection[str], load_s: float, now: float
) -> tuple[str, Slot] | None:
    """The model to load now and the slot for it; None if no load is worth it yet.

    slacks, busy: as in `Models.arrange`; load_s: seconds that a load takes
    The most urgent waiting model is next. Its slot is an empty one, else that of the model without waiting
    requests which was used longest ago, else that of the least urgent model, on the conditions above: it may
    be busy, and then the load begins when its forward has ended. A model's slack shrinks by a second each
    second while it waits, so every model's turn comes.
    """
    resident = {slot.model for slot in slots}
    absent = {model: slack for model, slack in slacks.items() if model not in resident}
    if not absent:
        return None
    model = min(absent, key=lambda one: absent[one])
    idle = [slot for slot in slots if slot.model not in slacks and slot.model not in busy]
    if idle:
        return model, min(idle, key=lambda slot: (slot.model is not None, slot.used_at))
    long_there = [slot for slot in slots if now - slot.loaded_at >= STAYS_FOR_LOADS * load_s]
    if not long_there:
        return None
    patient = max(long_there, key=lambda slot: slacks.get(slot.model or "", float("inf")))
    spared_s = slacks.get(patient.model or "", float("inf")) - absent[model]
    return (model, patient) if spared_s > URGENT_BY_LOADS * load_s else None


class UNetLoader(Protocol):
    """A device's way to models, real or simulated."""

    def describe(self, model: ModelRef) -> UNetInterface:
        """The U-Net without weights. Called on any thread. Raises ModelLoadError."""
        ...

    def load(self, model: ModelRef, into: StepRunner | None) -> StepRunner:
        """Loads the weights, into the memory of an earlier runner if it is of the same architecture. Called
        on the loading thread. Raises ModelLoadError."""
        ...


@dataclass(frozen=True, slots=True)
class _Load:
    model: str
    slot: Slot
    done: Future[StepRunner]
    began: float  # by the pool's clock


class ModelPool:
    """Keeps the models that requests need in a fixed number of slots.

    The engine's thread owns it; only `knows`, `know`, `known`, `resident` and `usual_load_s` may be called
    elsewhere.
    cost_of: the cost of a model's forwards; loading: a thread for loads
    first: a model that is there already
    changed: called on the loading thread after each load
    usual_load_s: seconds that a load takes, before there were others; clock: for timing loads, in seconds
    """

    def __init__(
        self,
        loader: UNetLoader,
        cost_of: Callable[[ModelRef], StageCost],
        num_slots: int,
        loading: ThreadPoolExecutor,
        changed: Callable[[], None],
        first: tuple[ModelRef, StepRunner],
        usual_load_s: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._loader = loader
        self._cost_of = cost_of
        self._loading = loading
        self._changed = changed
        self._usual_load_s = usual_load_s
        self._refs: dict[str, ModelRef] = {}
        self._known: dict[str, KnownModel] = {}
        self._tables: dict[str, SamplerTables] = {}
        self._runners: dict[str, StepRunner] = {}
        self._failures: dict[str, StageError] = {}
        self._under_way: _Load | None = None
        self._next: tuple[str, Slot] | None = None  # begins when the slot is no longer busy
        self._slots = [Slot() for _ in range(num_slots)]
        model, run_step = first
        self._put(self._slots[0], model.unet, run_step, -float("inf"))

    @property
    def resident(self) -> tuple[str, ...]:
        """The models that are there, and the one that is being loaded."""
        load = self._under_way
        return (*self._runners, *((load.model,) if load else ()))

    @property
    def usual_load_s(self) -> float:
        """Seconds that a load takes, by the last ones."""
        return self._usual_load_s

    def knows(self, model: ModelRef) -> bool:
        return model.unet in self._known

    def know(self, model: ModelRef) -> None:
        """Reads a model's configuration at first use. To be called before its first request is added.

        Raises ModelLoadError.
        """
        if not self.knows(model):
            self._refs[model.unet] = model
            schedule = load_model_info(model.source).scheduler_config
            tables = self._tables.setdefault(
                json.dumps(dict(schedule), sort_keys=True), SamplerTables(schedule)
            )
            unet = self._loader.describe(model)
            self._known[model.unet] = KnownModel(unet, tables, self._cost_of(model))

    def known(self, model: str) -> KnownModel:
        return self._known[model]

    def runner(self, model: str) -> StepRunner | None:
        return self._runners.get(model)

    def failure(self, model: str) -> StageError | None:
        return self._failures.get(model)

    def load_s(self, model: str) -> float:
        return 0.0 if model in self._runners else self._usual_load_s

    def arrange(self, slacks: Mapping[str, float], busy: Collection[str], now: float) -> None:
        self._take_in(now)
        for model in [model for model in self._failures if model not in slacks]:
            del self._failures[model]  # all that waited for it have failed; later requests try again
        for slot in self._slots:
            if slot.model in slacks:
                slot.used_at = now
        if self._under_way is None and self._next is None:
            wanted = {model: slack for model, slack in slacks.items() if model not in self._failures}
            self._next = next_load(wanted, self._slots, busy, self._usual_load_s, now)
            if self._next is not None and (leaving := self._next[1].model) is not None:
                del self._runners[leaving]  # it gets no more forwards
        if self._next is not None and self._next[1].model not in busy:
            self._begin(*self._next)
            self._next = None

    def _begin(self, model: str, slot: Slot) -> None:
        # Emptied by the load itself: memory that anybody else held on to could not be given back first.
        into = [slot.run_step]
        slot.model = slot.run_step = None  # of no model until the load is done
        began = self._clock()
        done = self._loading.submit(lambda: self._loader.load(self._refs[model], into.pop()))
        self._under_way = _Load(model, slot, done, began)
        done.add_done_callback(lambda _: self._changed())

    def _take_in(self, now: float) -> None:
        load = self._under_way
        if load is None or not load.done.done():
            return
        self._under_way = None
        seconds = self._clock() - load.began
        if (error := load.done.exception()) is not None:
            self._fail(load, error)
            return
        self._usual_load_s += _NEWEST * (seconds - self._usual_load_s)
        self._put(load.slot, load.model, load.done.result(), now)
        logger.info("loaded a model from %s in %.2f s", self._refs[load.model].source.path, seconds)

    def _put(self, slot: Slot, model: str, run_step: StepRunner, now: float) -> None:
        slot.model, slot.run_step, slot.loaded_at, slot.used_at = model, run_step, now, now
        self._runners[model] = run_step

    def _fail(self, load: _Load, error: BaseException) -> None:
        if is_device_fault(error):
            raise DeviceFaultError.of(error) from error
        path = self._refs[load.model].source.path
        logger.error("the model from %s could not be loaded", path, exc_info=error)
        if not is_out_of_memory(error):
            self._failures[load.model] = unloadable()
        elif len(self._slots) > 1:
            # There is room for fewer than was thought. It is tried again in the place of another model.
            self._slots.remove(load.slot)
            logger.warning("from now on at most %d models are on the device", len(self._slots))
        else:
            reason = "There is no room for the model on the device."
            self._failures[load.model] = StageError(Fault.OUT_OF_MEMORY, reason)
