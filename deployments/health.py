"""Whether a replica can go on. A replica that cannot ends its process before it answers any caller.

A device whose calls all fail at once looks idle and attracts requests. When the process ends, its callers see
a dead replica and call another one (serve.calls.failover), and Serve starts a new replica.
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

# After this many broken requests in a row, the replica ends itself, whatever the cause.
MAX_FAILURES = 3
# A call takes milliseconds to seconds. A call that takes longer than this never ends.
MAX_SILENCE_S = 120.0


def end_process(reason: str) -> None:
    logger.critical("this replica ends itself: %s", reason)
    os._exit(1)


class Health:
    """Counts the outcomes of a replica's requests. end: called with the reason when it cannot go on."""

    def __init__(self, end: Callable[[str], None] = end_process) -> None:
        self._end = end
        self._failures = 0
        self._call_began: float | None = None
        self._faults = metrics.Counter(
            "midstep_stage_faults_total", "Requests that a stage could not do, by fault.", ("fault",)
        )
        self._halved = metrics.Counter(
            "midstep_out_of_memory_total", "Calls repeated with fewer items, as they did not fit into memory."
        )

    def lost(self, reason: str) -> None:
        """The device is lost, or the thread that drives it has failed."""
        self._end(reason)

    def halved(self) -> None:
        """A call did not fit into the device's memory."""
        self._halved.inc()

    def worked(self) -> None:
        self._failures = 0

    def failed(self, fault: Fault, reason: str) -> None:
        """A request failed. Only unforeseen failures (BROKEN) count against the device."""
        self._faults.inc(tags={"fault": fault})
        if fault is not Fault.BROKEN:
            return
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            self._end(f"the last {self._failures} requests failed, the last of them with {reason}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches a model call on the one thread that makes them. The start time of a call that hangs stays,
        even if requests come or leave. An error that leaves the call breaks all of its requests."""
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
        """Counts one request of a call that returned. Logs and raises its error if it has one. Called within
        the request, so that Serve adds the request's id to the log."""
        if isinstance(result, StageError):
            logger.error("the request failed: %s", result)
            self.failed(result.fault, result.detail)
            raise result
        self.worked()
        return result

    def check(self) -> None:
        """Raises RuntimeError if a call hangs, so that Serve's `check_health` replaces the replica."""
        if self._call_began is not None and time.monotonic() - self._call_began > MAX_SILENCE_S:
            raise RuntimeError(f"a call has not ended for {MAX_SILENCE_S:.0f} s")
