"""An event loop whose clock stands still during work, so that a sleep takes exactly its time."""

import asyncio
from collections.abc import Coroutine
from selectors import DefaultSelector, SelectorKey
from typing import Any, TypeVar

T = TypeVar("T")
# Data sent over loopback arrives within this real time, however busy the machine is.
_GRACE_S = 0.005


class _Selector(DefaultSelector):
    """Time passes where the loop would wait for it, and nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """timeout: 0 if the loop only looks, None if it waits for no time"""
        if not timeout:
            return super().select(timeout)
        events = super().select(_GRACE_S)
        if not events:
            self.now_s += timeout
        return events


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """Does `asyncio.run` in virtual time. Other clocks and threads are not part of it."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)
