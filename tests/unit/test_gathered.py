import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from deployments.gathered import Gathered


class Thread:
    """A stage's thread that does its first batch until it is let go."""

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(1)
        self.batches: list[list[int]] = []
        self.is_busy, self.may_go = threading.Event(), threading.Event()

    def run(self, items: Sequence[int]) -> list[str]:
        self.batches.append(list(items))
        self.is_busy.set()
        assert self.may_go.wait(30)
        if min(items) < 0:
            raise ValueError("below zero")
        return [f"result {item}" for item in items if item != 13]


@pytest.fixture
def thread() -> Iterator[Thread]:
    thread = Thread()
    yield thread
    thread.may_go.set()
    thread.executor.shutdown()


@pytest.fixture
def gathered(thread: Thread) -> Gathered[int, str]:
    return Gathered(thread.executor, thread.run, 3)


def test_what_comes_while_the_thread_is_busy_is_run_together(
    thread: Thread, gathered: Gathered[int, str]
) -> None:
    results = [gathered.add(0)]
    assert thread.is_busy.wait(30), "an item waits although the thread is free"
    results += [gathered.add(item) for item in range(1, 6)]
    thread.may_go.set()
    assert [result.result(30) for result in results] == [f"result {item}" for item in range(6)]
    assert thread.batches == [[0], [1, 2, 3], [4, 5]]


def test_both_kinds_of_items_have_their_turns(thread: Thread, gathered: Gathered[int, str]) -> None:
    other = Gathered(thread.executor, thread.run, 3)
    gathered.add(0)
    assert thread.is_busy.wait(30)
    last = [gathered.add(1), other.add(2), gathered.add(3), other.add(4)]
    thread.may_go.set()
    assert [result.result(30) for result in last] == [f"result {item}" for item in range(1, 5)]
    assert thread.batches == [[0], [1, 3], [2, 4]]


def test_what_was_cancelled_is_left_out(thread: Thread, gathered: Gathered[int, str]) -> None:
    begun = gathered.add(0)
    assert thread.is_busy.wait(30)
    cancelled, kept = gathered.add(1), gathered.add(2)
    assert cancelled.cancel()
    assert not begun.cancel()
    thread.may_go.set()
    assert kept.result(30) == "result 2"
    assert thread.batches == [[0], [2]]
    with pytest.raises(CancelledError):
        cancelled.result(30)


def test_too_few_results_are_an_error_and_nobody_waits_for_ever(
    thread: Thread, gathered: Gathered[int, str]
) -> None:
    thread.may_go.set()
    with pytest.raises(ValueError, match="zip"):
        gathered.add(13).result(30)


def test_an_error_reaches_the_batch_and_nobody_else(thread: Thread, gathered: Gathered[int, str]) -> None:
    first = gathered.add(0)
    assert thread.is_busy.wait(30)
    failing = [gathered.add(item) for item in (1, -1, 2)]
    after = gathered.add(3)
    thread.may_go.set()
    assert first.result(30) == "result 0"
    for result in failing:
        with pytest.raises(ValueError, match="below zero"):
            result.result(30)
    assert after.result(30) == "result 3"
