"""Readiness: sleeping stages stay asleep, other stages must be running."""

import asyncio
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest

from deployments.engine.model_source import ModelRef
from serve.calls.fleet import Fleet
from serve.calls.pipeline import Pipeline
from serve.calls.readiness import Readiness
from serve.calls.telemetry import Telemetry
from serve.errors import NotReadyError
from tests.generation_requests import SOME_MODEL
from tests.unit.test_admission import COST

STAGES = ("encoder", "denoiser", "decoder")
COSTS = dict(zip(STAGES, (COST.encode, (COST.forward, 0.0), (COST.decode, COST.decode)), strict=True))
KNOWN = replace(COST, encode_picture=COST.decode)
MIN_REPLICAS = {stage: int(stage != "denoiser") for stage in STAGES}


class Call:
    """The response of a stage, which never comes if the stage is late."""

    def __init__(self, value: Any, late: bool) -> None:
        self._value = value
        self._late = late

    def __await__(self) -> Generator[Any, None, Any]:
        if self._late:
            yield from asyncio.Event().wait().__await__()
        return self._value

    def cancel(self) -> None: ...


class Stage:
    """A handle with one method. calls: names of all called stages; late: names of stages that never answer"""

    def __init__(self, name: str, calls: list[str], late: set[str]) -> None:
        self._name = name
        self._calls = calls
        self._late = late

    @property
    def cost(self) -> "Stage":
        return self

    def remote(self, _: ModelRef) -> Call:
        self._calls.append(self._name)
        return Call(COSTS[self._name], self._name in self._late)


class StillFleet(Fleet):
    """A fleet without a Serve to watch. gone: stages without replicas"""

    def __init__(self, *gone: str) -> None:
        super().__init__("app", dict(zip(STAGES, STAGES, strict=True)), "ingress", "a replica")
        self.gone = set(gone)

    def has_replica(self, stage: str) -> bool:
        return stage not in self.gone


class Scripted:
    def __init__(self, *late: str) -> None:
        self.calls: list[str] = []
        self.late = set(late)
        handles: list[Any] = [Stage(name, self.calls, self.late) for name in STAGES]
        self.fleet = StillFleet()
        self.pipeline = Pipeline(*handles, SOME_MODEL, Telemetry())
        self.readiness = Readiness(self.pipeline, self.fleet, MIN_REPLICAS)

    def check(self, times: int = 1) -> None:
        async def check() -> None:
            for _ in range(times):
                await self.readiness.check(0.2)

        asyncio.run(check())


def test_a_stage_that_may_sleep_is_called_once() -> None:
    stages = Scripted()
    stages.check()
    assert sorted(stages.calls) == sorted(STAGES), "what it costs is not known before"
    assert stages.pipeline.costs.known() == KNOWN
    for gone in ({"denoiser"}, set()):  # it may be starting
        stages.fleet.gone = gone
        stages.calls.clear()
        stages.check(times=3)
        assert sorted(stages.calls) == ["decoder"] * 3 + ["encoder"] * 3


def test_it_is_not_called_again_because_another_is_late() -> None:
    stages = Scripted("decoder")
    for _ in range(3):
        with pytest.raises(NotReadyError, match="Not every stage has a replica that answers"):
            stages.check()
    assert stages.calls.count("denoiser") == 1
    stages.late.clear()
    stages.check()
    assert stages.pipeline.costs.known() == KNOWN


def test_a_stage_without_replicas_that_should_have_some_is_not_ready() -> None:
    stages = Scripted()
    stages.check()
    stages.fleet.gone = {"decoder"}
    with pytest.raises(NotReadyError, match="The decoder has no running replica"):
        stages.check()
