"""An event loop whose clock stands still while anything happens: a sleep takes exactly what it should."""

import asyncio
from collections.abc import Coroutine
from selectors import DefaultSelector, SelectorKey
from typing import Any, TypeVar

T = TypeVar("T")
# What was sent over loopback has come after as much real time, however busy the machine is.
_GRACE_S = 0.005


class _Selector(DefaultSelector):
    """Time passes where the loop would wait for it, and nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """timeout: 0 where the loop only looks, None where it waits for no time"""
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
    """As `asyncio.run`, in virtual time. Other clocks and what threads do are not part of it."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)
