import threading
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from deployments.engine.device_step import EagerSteps, warm_up
from deployments.engine.fingerprint import model_ref
from deployments.engine.model_source import Placement
from deployments.engine.pace import Pace
from deployments.engine.unet_loader import DeviceLoader
from tests.unit.test_unet_loader import saved


class Clock:
    """The CPU time of a thread, and its rests."""

    def __init__(self) -> None:
        self.now = 5.0
        self.rests: list[float] = []

    def __call__(self) -> float:
        return self.now


def test_a_thread_works_for_a_tenth_of_the_time_beside_forwards() -> None:
    clock = Clock()
    pace = Pace(lambda: True, clock, clock.rests.append)
    for _ in range(8):
        clock.now += 0.00075
        pace.rest()
    assert clock.rests == pytest.approx([0.0135] * 4)


def test_nobody_rests_where_nothing_runs() -> None:
    clock, runs = Clock(), False
    pace = Pace(lambda: runs, clock, clock.rests.append)
    clock.now += 2.0
    pace.rest()
    assert clock.rests == []
    runs = True
    clock.now += 0.002
    pace.rest()
    assert clock.rests == pytest.approx([0.018]), "what was done while nothing ran is not rested for"


def test_a_load_rests_while_a_forward_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward that ends only when the load has rested."""
    first = model_ref(saved(tmp_path / "first", "sd1", 1))
    second = model_ref(saved(tmp_path / "second", "sd1", 2))
    loader = DeviceLoader(Placement(device="cpu"), (), 1)
    serving, spare = (loader.load(first, None) for _ in range(2))
    assert isinstance(serving, EagerSteps)
    has_begun, has_rested = threading.Event(), threading.Event()
    always = partial(Pace, now=count().__next__, sleep=lambda _: has_rested.set())
    monkeypatch.setattr("deployments.engine.unet_loader.Pace", always)
    forward = serving.unet._module.forward

    def long_forward(*args: object, **kwargs: object) -> object:
        has_begun.set()
        assert has_rested.wait(30)
        return forward(*args, **kwargs)

    serving.unet._module.forward = long_forward
    running = threading.Thread(target=warm_up, args=(loader.describe(first), serving, (8, 8), 1))
    running.start()
    try:
        assert has_begun.wait(30)
        assert loader.load(second, spare) is spare
        assert has_rested.is_set()
    finally:
        has_rested.set()
        running.join()
