"""A stage is ill after failures in a row, and only then."""

import pytest

from deployments.health import MAX_FAILURES, Health


def fail(health: Health) -> None:
    with pytest.raises(ZeroDivisionError), health.watching():
        raise ZeroDivisionError


def test_failures_in_a_row_are_an_illness() -> None:
    health = Health()
    for _ in range(MAX_FAILURES):
        health.check()
        fail(health)
    with pytest.raises(RuntimeError, match=f"the last {MAX_FAILURES} calls failed"):
        health.check()


def test_one_that_works_between_them_is_health() -> None:
    health = Health()
    for _ in range(MAX_FAILURES):
        fail(health)
        with health.watching():
            pass
    health.check()
