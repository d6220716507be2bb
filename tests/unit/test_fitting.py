"""Calls that do not fit into memory are made smaller, and what fits is remembered by shape."""

from collections.abc import Sequence

import pytest
import torch

from deployments.engine import fitting as fitting_module
from deployments.engine.device_faults import DeviceFaultError
from deployments.engine.fitting import Fitting
from deployments.engine.stage_errors import Fault, StageError


class Device:
    """Doubles its inputs, of which only a limited number fit."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls: list[int] = []

    def call(self, items: Sequence[int]) -> list[int]:
        self.calls.append(len(items))
        if len(items) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * item for item in items]


def test_a_call_is_halved_until_it_fits_and_the_next_is_no_larger(caplog: pytest.LogCaptureFixture) -> None:
    device, halved = Device(most=3), []
    fitting = Fitting("images", lambda: halved.append(None))
    for _ in range(2):
        assert fitting.run((16, 16), range(8), device.call) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert device.calls == [8, 4, 2, 2, 2, 2, *4 * [2]]
    assert len(halved) == 2
    assert "8 images (shape (16, 16)) do not fit" in caplog.text


def test_other_shapes_are_not_concerned() -> None:
    device = Device(most=3)
    fitting = Fitting("images")
    fitting.run((16, 16), range(4), device.call)
    assert fitting.most((16, 16), 8) == 2
    assert fitting.most((8, 8), 8) == 8


def test_only_what_does_not_fit_alone_is_refused() -> None:
    [refused, other] = Fitting("texts").run(None, range(2), Device(most=0).call)
    assert isinstance(refused, StageError)
    assert refused.fault is Fault.OUT_OF_MEMORY
    assert "too little memory for this request's texts" in refused.detail
    assert isinstance(other, StageError)


def test_what_was_too_much_is_tried_again_after_a_while_and_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fitting_module, "_FULL_CALLS", 3)
    device = Device(most=2)
    fitting = Fitting("images")

    def calls(number: int) -> list[int]:
        device.calls.clear()
        fitting.run((16, 16), range(number), device.call)
        return device.calls

    assert calls(4) == [4, 2, 2]
    assert calls(1) == [1], "which says nothing of more"
    assert calls(6) == [2, 4, 2, 2], "in vain"
    assert calls(12) == [*4 * [2], 4, 2, 2]
    device.most = 4
    assert calls(24) == [*10 * [2], 4]
    assert calls(8) == [4, 4]


def test_memory_that_somebody_else_held_for_a_moment_costs_nobody_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(most=1)
    fitting = Fitting("images")
    fitting.run((16, 16), [1], device.call)
    device.most = 0

    def give_back(seconds: float) -> None:
        device.most = 1 if len(device.calls) == 3 else 0

    monkeypatch.setattr(fitting_module.time, "sleep", give_back)
    for _ in range(3):
        device.calls.clear()
        device.most = 0
        assert fitting.run((16, 16), [2], device.call) == [4]


def test_memory_that_somebody_else_keeps_is_the_end_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that has never fitted is still refused, without waiting."""
    waits: list[float] = []
    monkeypatch.setattr(fitting_module.time, "sleep", waits.append)
    device = Device(most=1)
    fitting = Fitting("images")
    fitting.run((16, 16), [1], device.call)
    device.most = 0
    [refused] = fitting.run((32, 32), [1], device.call)
    assert isinstance(refused, StageError)
    assert not waits
    with pytest.raises(DeviceFaultError, match="had fitted into the device's memory and no longer do"):
        fitting.run((16, 16), range(8), device.call)
    assert waits == list(fitting_module._PATIENCE_S)


def test_of_a_call_that_breaks_each_is_tried_alone() -> None:
    def call(items: Sequence[int]) -> list[int]:
        if 2 in items:
            raise RuntimeError("two!")
        return [2 * item for item in items]

    *results, last = Fitting("texts").run(None, [0, 1, 3, 2], call)
    assert results == [0, 2, 6]
    assert isinstance(last, StageError)
    assert (last.fault, last.detail) == (Fault.BROKEN, "RuntimeError: two!")


def test_a_lost_device_is_not_asked_again() -> None:
    calls: list[int] = []

    def call(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    with pytest.raises(torch.AcceleratorError):
        Fitting("texts").run(None, range(4), call)
    assert calls == [4]
