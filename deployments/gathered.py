"""Batches of what waits while the device works."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Gathered(Generic[Item, Result]):
    """Runs items together that came while the thread was busy.

    executor: has one thread
    run: returns a result for each of at most max_batch_size items, in order; called on the thread

    Unlike in `@serve.batch`, no item waits for others while the thread is free, and a batch is formed when
    its run begins, not while the one before it runs. This suits calls that take as long for each item in a
    batch as alone, where waiting for a fuller batch gains nothing.
    """

    def __init__(
        self, executor: Executor, run: Callable[[Sequence[Item]], Sequence[Result]], max_batch_size: int
    ) -> None:
        self._executor = executor
        self._run = run
        self._max_batch_size = max_batch_size
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()

    def add(self, item: Item) -> Future[Result]:
        """An item's result. Cancelled before its batch begins, it is left out."""
        result: Future[Result] = Future()
        self._waiting.append((item, result))
        # A turn on the thread for every item. The first one takes all that wait; later ones may find none.
        self._executor.submit(self._take_turn)
        return result

    def _take_turn(self) -> None:
        batch: list[tuple[Item, Future[Result]]] = []
        while self._waiting and len(batch) < self._max_batch_size:
            item, result = self._waiting.popleft()
            if result.set_running_or_notify_cancel():
                batch.append((item, result))
        if not batch:
            return
        try:
            pairs = list(zip(batch, self._run([item for item, _ in batch]), strict=True))
        except BaseException as error:
            for _, result in batch:
                result.set_exception(error)
        else:
            for (_, result), found in pairs:
                result.set_result(found)
