"""A replica ends itself only if its device is lost or if request after request breaks."""

from collections.abc import Callable

import pytest
import torch

from deployments import health as health_module
from deployments.engine.stage_errors import Fault, StageError, not_finite
from deployments.health import MAX_FAILURES, MAX_SILENCE_S, Health

Ended = list[str]


@pytest.fixture
def ended() -> Ended:
    return []


@pytest.fixture
def health(ended: Ended) -> Health:
    return Health(ended.append)


def fail(health: Health, error: Exception) -> None:
    with pytest.raises(type(error)), health.watching():
        raise error


def test_a_lost_device_is_the_end_at_once(health: Health, ended: Ended) -> None:
    fail(health, torch.AcceleratorError("CUDA error: unspecified launch failure"))
    assert ended == ["AcceleratorError: CUDA error: unspecified launch failure"]


def test_failures_in_a_row_are_the_end_whatever_their_cause(health: Health, ended: Ended) -> None:
    for _ in range(MAX_FAILURES):
        assert not ended
        fail(health, ZeroDivisionError("why?"))
    assert ended == [
        f"the last {MAX_FAILURES} requests failed, the last of them with ZeroDivisionError: why?"
    ]


def test_one_that_works_between_them_is_health(health: Health, ended: Ended) -> None:
    for _ in range(MAX_FAILURES):
        fail(health, ZeroDivisionError())
        health.worked()
    assert not ended


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.OUT_OF_MEMORY, Fault.NOT_FINITE])
def test_what_is_the_requests_own_fault_says_nothing_of_the_device(
    health: Health, ended: Ended, fault: Fault
) -> None:
    for _ in range(2 * MAX_FAILURES):
        with pytest.raises(StageError, match="own fault"):
            health.check_result(StageError(fault, "its own fault"))
    assert not ended


def test_a_result_is_handed_on(health: Health) -> None:
    assert health.check_result("a result") == "a result"
    with pytest.raises(StageError, match=r"The VAE gave values that are not numbers.*bfloat16"):
        health.check_result(not_finite("VAE"))


def test_a_call_that_does_not_end_is_an_illness(
    health: Health, monkeypatch: pytest.MonkeyPatch, fake_clock: Callable[[float], None]
) -> None:
    health.check()
    with health.watching():
        health.check()
        fake_clock(MAX_SILENCE_S + 1)
        with pytest.raises(RuntimeError, match="a call has not ended"):
            health.check()
    health.check()


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock forward."""
    now = [0.0]

    class Time:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr(health_module, "time", Time)

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by
