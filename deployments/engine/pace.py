"""The pace of work beside forwards on a CPU."""

import time
from collections.abc import Callable

# Of a thread's time beside forwards: they take about a tenth longer at most, however much there is to do.
_SHARE = 0.1
_LEAST_S = 0.001  # shorter work is not worth a rest


class Pace:
    """Leaves the cores to forwards for most of the time, because on a CPU they are the device.

    A low priority alone does not do that: a thread that copies weights still has its turns on a core, and a
    forward waits for the slowest of its parts. A pace is for one thread, the one that makes it.

    is_running: whether a forward runs; now: the thread's CPU time in seconds
    """

    def __init__(
        self,
        is_running: Callable[[], bool],
        now: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._is_running = is_running
        self._now = now
        self._sleep = sleep
        self._since = now()

    def rest(self) -> None:
        """Rests, if a forward runs, for nine times as long as the thread worked since it last rested."""
        worked_s = self._now() - self._since
        if worked_s < _LEAST_S:
            return
        if self._is_running():
            self._sleep(worked_s * (1 / _SHARE - 1))
        self._since = self._now()
