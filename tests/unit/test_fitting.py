"""Calls that do not fit into memory are made smaller, and what fits is remembered by shape."""

from collections.abc import Sequence

import pytest
import torch

from deployments.engine.fitting import Fitting
from deployments.engine.stage_errors import Fault, StageError


class Device:
    """Doubles what it is given, of which not more than so many fit; one item never does."""

    def __init__(self, most: int, too_large: int | None = None) -> None:
        self.most = most
        self.too_large = too_large
        self.calls: list[int] = []

    def call(self, items: Sequence[int]) -> list[int]:
        self.calls.append(len(items))
        if len(items) > self.most or self.too_large in items:
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
    results = Fitting("texts").run(None, range(4), Device(most=4, too_large=2).call)
    assert [result for result in results if not isinstance(result, StageError)] == [0, 2, 6]
    refused = results[2]
    assert isinstance(refused, StageError)
    assert refused.fault is Fault.OUT_OF_MEMORY
    assert "too little memory for this request's texts" in refused.detail


def test_other_errors_are_no_matter_of_size() -> None:
    def broken(items: Sequence[int]) -> list[int]:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        Fitting("texts").run(None, range(4), broken)
