"""A simulated denoiser: the engine's decisions without its tensors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from simpy import Environment, Event

from cluster.plan.devices import Device
from cluster.plan.model_slots import Loads, ModelSlots
from cluster.plan.stages import Batches, Overheads, Process
from deployments.batching import Batching
from deployments.engine.adapters import bank_rows
from deployments.engine.cost import StageCost
from deployments.engine.engine_config import EngineConfig
from deployments.engine.messages import DenoiseRequest
from deployments.engine.step_scheduler import (
    Group,
    StepScheduler,
    group_of,
    num_rows,
    rank_of,
    slack_s,
    unloaded_s,
)


@dataclass(eq=False, slots=True)
class SimulatedDenoising:
    """An image in the engine, with the fields that the step scheduler reads, and its end."""

    request: DenoiseRequest
    group: Group
    unloaded_s: float
    done: Event
    arrival: float = 0.0
    call: int = 0

    @property
    def calls_left(self) -> int:
        return self.request.num_calls - self.call


@dataclass(frozen=True, slots=True)
class DenoisingCosts:
    """The costs that every denoiser uses, each computed once. They are the same for all models.

    max_rank: as in EngineConfig
    """

    row_cap: Callable[[Group], int]
    seconds: Callable[[Group, int, int], float]
    work_s: Callable[[Group, int, int], float]
    max_rank: int

    @classmethod
    def of(cls, config: EngineConfig, cost: StageCost) -> "DenoisingCosts":
        def seconds(group: Group, rows: int, rank: int) -> float:
            return config.seconds(group, cost, rows, rank)

        def work_s(group: Group, rows: int, rank: int) -> float:
            return config.work_s(group, cost, rows, rank)

        def row_cap(group: Group) -> int:
            return config.row_cap(group, cost)

        return cls(cache(row_cap), cache(seconds), cache(work_s), config.max_rank)


@dataclass(frozen=True, slots=True)
class Room:
    """Room for models on a device. slots: how many at once; load_s: seconds that a load takes"""

    slots: int = 1
    load_s: float = 0.0


class DenoiserReplica:
    """The engine's bookkeeping: arrange the models, admit, launch, finish. loads: of the whole run"""

    def __init__(
        self,
        env: Environment,
        device: Device,
        batching: Batching,
        costs: DenoisingCosts,
        overheads: Overheads,
        room: Room,
        loads: Loads,
    ) -> None:
        self._env = env
        self._device = device
        self._costs = costs
        self._overheads = overheads
        self._loads = loads
        self._models = ModelSlots(env, room.slots, room.load_s, self._look)
        self._scheduler = StepScheduler(costs.row_cap, costs.seconds, costs.max_rank)
        self._admitted: Batches[SimulatedDenoising] = Batches(env, batching, self._admit)
        self._items: dict[str, SimulatedDenoising] = {}
        self._busy: tuple[str, ...] = ()  # the model of the forward under way
        self._woken = env.event()
        env.process(self._work())

    def work_s(self, call: DenoiseRequest) -> float:
        work_s = self._costs.work_s(group_of(call), call.rows_left(), bank_rows(call.adapters))
        return work_s + self._models.load_s(call.model)

    def routing_stats(self) -> Mapping[str, Any]:
        return {"models": self._models.resident, "load_s": self._models.usual_load_s}

    def run(self, call: DenoiseRequest) -> Event:
        group, done = group_of(call), self._env.event()
        rank = bank_rows(call.adapters)
        alone_s = unloaded_s(call, lambda rows: self._costs.seconds(group, rows, rank))
        self._admitted.add(SimulatedDenoising(call, group, alone_s, done))
        return done

    def _admit(self, batch: list[SimulatedDenoising]) -> None:
        for item in batch:
            item.arrival = self._env.now + self._models.load_s(item.group.model)
            self._items[item.request.request_id] = item
            self._arrange()
        self._wake_up()

    def _look(self) -> None:
        """A model is there."""
        self._loads.number += 1
        self._arrange()
        self._wake_up()

    def _wake_up(self) -> None:
        if not self._woken.triggered:
            self._woken.succeed()

    def _arrange(self) -> None:
        """Says who waits for which model, as the engine does."""
        by_model: dict[str, list[SimulatedDenoising]] = {}
        for item in self._items.values():
            if item.calls_left:
                by_model.setdefault(item.group.model, []).append(item)
        absent = [items for model, items in by_model.items() if not self._models.holds(model)]
        for items in absent:
            self._loads.waited.update(item.request.request_id for item in items)
        # How long models can wait matters only beside one that is not there.
        slacks = {
            model: slack_s(items, self._env.now) if absent else math.inf for model, items in by_model.items()
        }
        self._models.arrange(slacks, self._busy)

    def _work(self) -> Process:
        while True:
            self._arrange()
            ready = [item for item in self._items.values() if self._models.holds(item.group.model)]
            if not ready:
                self._woken = self._env.event()
                yield self._woken
                continue
            batch = self._scheduler.admit(ready, self._env.now)
            forward_s = self._overheads.slowdown * self._costs.seconds(
                batch[0].group, num_rows(batch), rank_of(batch)
            )
            self._busy = (batch[0].group.model,)
            for item in batch:
                item.call += 1
            yield self._device.run(forward_s + self._overheads.step_s)
            self._busy = ()
            for item in batch:
                if not item.calls_left:
                    del self._items[item.request.request_id]
                    item.done.succeed()
