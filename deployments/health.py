"""Whether a replica can go on. One that cannot ends its process, before it answers anybody.

A device that fails every call at once looks idle and draws requests. Without the process its callers see a
dead replica and go to another one (serve.calls.failover), and Serve begins another in its place.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ray.serve import metrics

from deployments.engine.device_faults import is_device_fault
from deployments.engine.stage_errors import Fault, StageError

logger = logging.getLogger("ray.serve")
Result = TypeVar("Result")

# So many requests in a row that were broken, with none between that worked, and the replica ends itself,
# whatever the cause.
MAX_FAILURES = 3
# A call takes milliseconds to seconds; one that takes longer than this never ends.
MAX_SILENCE_S = 120.0


def end_process(reason: str) -> None:
    logger.critical("this replica ends itself: %s", reason)
    os._exit(1)


class Health:
    """Counts what becomes of a replica's requests. end: called with the reason when it cannot go on."""

    def __init__(self, end: Callable[[str], None] = end_process) -> None:
        self._end = end
        self._failures = 0
        self._call_began: float | None = None
        self._faults = metrics.Counter(
            "midstep_stage_faults_total", "Requests that a stage could not do, by what was wrong.", ("fault",)
        )
        self._halved = metrics.Counter(
            "midstep_out_of_memory_total", "Calls that did not fit into memory and were made again, smaller."
        )

    def lost(self, reason: str) -> None:
        """The device is lost, or whoever drives it."""
        self._end(reason)

    def halved(self) -> None:
        """A call did not fit into the device's memory."""
        self._halved.inc()

    def worked(self) -> None:
        self._failures = 0

    def failed(self, fault: Fault, reason: str) -> None:
        """A request failed. What is the request's or the model's own fault says nothing of the device."""
        self._faults.inc(tags={"fault": fault})
        if fault is not Fault.BROKEN:
            return
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            self._end(f"the last {self._failures} requests failed, the last of them with {reason}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around a call of the model, on the one thread that makes them: the time of a call that hangs stays,
        whoever comes or leaves meanwhile. An error that leaves it breaks all of its requests."""
        self._call_began = time.monotonic()
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if is_device_fault(error):
                self.lost(reason)
            logger.exception("a call failed")
            self.failed(Fault.BROKEN, reason)
            raise
        finally:
            self._call_began = None

    def check_result(self, result: Result | StageError) -> Result:
        """Counts a request of a call that returned. Raises its error, if it is one, and logs it: to be called
        by the request, whose id Serve adds."""
        if isinstance(result, StageError):
            logger.error("the request failed: %s", result)
            self.failed(result.fault, result.detail)
            raise result
        self.worked()
        return result

    def check(self) -> None:
        """Raises RuntimeError, as Serve's `check_health` does to have the replica replaced."""
        if self._call_began is not None and time.monotonic() - self._call_began > MAX_SILENCE_S:
            raise RuntimeError(f"a call has not ended for {MAX_SILENCE_S:.0f} s")
