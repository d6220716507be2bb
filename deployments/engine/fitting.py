"""How much of a shape fits into the device's memory at once, as learned from failures.

A call that does not fit is repeated with half as many items, and that limit is remembered. After a thousand
full calls, and then ever more rarely, the limit is doubled on trial, since memory that others had taken may
be free again. A single item that has never fitted is refused. If a single item had fitted before, somebody
else holds the memory. If that does not pass within seconds, the device is lost to this process.
"""

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from deployments.engine.device_faults import DeviceFaultError, is_device_fault, is_out_of_memory
from deployments.engine.stage_errors import Fault, StageError, broken

logger = logging.getLogger("ray.serve")
Item = TypeVar("Item")
Result = TypeVar("Result")

_FULL_CALLS = 1000
# Seconds to wait for memory that somebody else may hold only for one call.
_PATIENCE_S = (0.1, 0.3, 1.0)


@dataclass
class _Limit:
    """full_calls: full calls that fitted since it was set; trial_after: full calls until it is doubled"""

    most: int
    trial_after: int
    full_calls: int = 0


class Fitting:
    """Remembers for each shape what fitted and what did not.

    unit: rows, images or texts; halved: called when a call did not fit and is repeated with half as many
    """

    def __init__(self, unit: str, halved: Callable[[], None] = lambda: None) -> None:
        self._unit = unit
        self._halved = halved
        self._limits: dict[Hashable, _Limit] = {}
        self._fitted: dict[Hashable, int] = {}
        self._waits = iter(_PATIENCE_S)

    def most(self, shape: Hashable, count: int) -> int:
        """`count`, or the limit if that is lower."""
        limit = self._limits.get(shape)
        return count if limit is None else min(count, limit.most)

    def fitted(self, shape: Hashable, count: int) -> None:
        """Records that `count` items fitted."""
        self._waits = iter(_PATIENCE_S)
        self._fitted[shape] = max(count, self._fitted.get(shape, 0))
        limit = self._limits.get(shape)
        if limit is None or 2 * count <= limit.most:
            return
        limit.full_calls += 1
        if limit.full_calls == limit.trial_after:
            self._limits[shape] = _Limit(2 * limit.most, 2 * limit.trial_after)

    def halve(self, shape: Hashable, count: int) -> None:
        """Records that `count` items did not fit; from now on half as many are tried, at least one."""
        limit = self._limits.get(shape)
        most = max(1, count // 2)
        self._limits[shape] = _Limit(most, limit.trial_after if limit else _FULL_CALLS)
        logger.warning(
            "%d %s (shape %s) do not fit into the device's memory: from now on %d at most",
            count,
            self._unit,
            shape,
            most,
        )
        self._halved()
        _free_cached()

    def wait(self, shape: Hashable, count: int) -> bool:
        """Whether to try again with one request's `count` items, which did not fit: memory may become free.

        Raises DeviceFaultError if as many had fitted before and waiting has not helped.
        """
        if count > self._fitted.get(shape, 0):
            return False
        _free_cached()
        wait_s = next(self._waits, None)
        if wait_s is None:
            raise DeviceFaultError(
                f"{count} {self._unit} (shape {shape}) had fitted into the device's memory and no longer do: "
                "somebody else holds it"
            )
        time.sleep(wait_s)
        return True

    def patiently(self, shape: Hashable, count: int, make: Callable[[], Result]) -> Result:
        """Calls `make`. If memory is short although `count` items fitted before, it waits and repeats."""
        while True:
            try:
                return make()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error)  # not the error itself: its traceback keeps the allocated memory alive
            if not self.wait(shape, count):
                raise torch.OutOfMemoryError(reason)

    def run(
        self,
        shape: Hashable,
        items: Sequence[Item],
        call: Callable[[Sequence[Item]], Sequence[Result | StageError]],
    ) -> list[Result | StageError]:
        """A result for each item, in as few calls as fit; an error for an item that fails alone.

        If a call of several items breaks, each is tried alone, so that none fails because of another. Raises
        only errors that say that the device is lost.
        """
        results: list[Result | StageError] = []
        while left := items[len(results) :]:
            part = left[: self.most(shape, len(left))]
            failure: StageError | None = None
            try:
                results += call(part)
            except Exception as error:
                if is_device_fault(error):
                    raise
                if not is_out_of_memory(error):
                    logger.exception("a call for %d %s broke", len(part), self._unit)
                    failure = broken(error)
            else:
                self.fitted(shape, len(part))
                continue
            # Here and not in the handler: the error's traceback keeps the allocated memory alive.
            if len(part) == 1:
                if failure or not self.wait(shape, 1):
                    results.append(failure or does_not_fit(self._unit, shape))
            elif failure:
                for item in part:
                    results += self.run(shape, [item], call)
            else:
                self.halve(shape, len(part))
        return results


def _free_cached() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # cached blocks have the size that did not fit


def does_not_fit(unit: str, shape: Hashable) -> StageError:
    """The error of a request that does not fit even alone."""
    of_shape = "" if shape is None else f" with latents of shape {shape}"
    return StageError(
        Fault.OUT_OF_MEMORY,
        f"The device has too little memory for this request's {unit}{of_shape}, even alone. "
        "A smaller picture may fit.",
    )
