"""How much of a shape fits into the device's memory at once, as learned from what did not."""

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch

from deployments.engine.device_faults import is_out_of_memory
from deployments.engine.stage_errors import Fault, StageError

logger = logging.getLogger("ray.serve")
Item = TypeVar("Item")
Result = TypeVar("Result")


class Fitting:
    """Remembers by shape what did not fit.

    unit: rows, images or texts; halved: called when a call did not fit and is made again with half as many
    """

    def __init__(self, unit: str, halved: Callable[[], None] = lambda: None) -> None:
        self._unit = unit
        self._halved = halved
        self._most: dict[Hashable, int] = {}

    def most(self, shape: Hashable, count: int) -> int:
        """So many, or as many as may fit."""
        return min(count, self._most.get(shape, count))

    def halve(self, shape: Hashable, count: int) -> int:
        """So many did not fit. How many are to be tried from now on; one at least."""
        self._most[shape] = max(1, count // 2)
        logger.warning(
            "%d %s (shape %s) do not fit into the device's memory: from now on %d at most",
            count,
            self._unit,
            shape,
            self._most[shape],
        )
        self._halved()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what is cached is in pieces of the size that did not fit
        return self._most[shape]

    def run(
        self,
        shape: Hashable,
        items: Sequence[Item],
        call: Callable[[Sequence[Item]], Sequence[Result | StageError]],
    ) -> list[Result | StageError]:
        """A result for each item, of as few calls as fit; an error for one that does not fit alone."""
        results: list[Result | StageError] = []
        while left := items[len(results) :]:
            count = self.most(shape, len(left))
            try:
                results += call(left[:count])
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Here and not in the handler: what had been allocated lives as long as the error's traceback.
            if count > 1:
                self.halve(shape, count)
            else:
                results.append(does_not_fit(self._unit, shape))
        return results


def does_not_fit(unit: str, shape: Hashable) -> StageError:
    """For a request that is alone."""
    of_shape = "" if shape is None else f" with latents of shape {shape}"
    return StageError(
        Fault.OUT_OF_MEMORY,
        f"The device has too little memory for this request's {unit}{of_shape}, even alone. "
        "A smaller picture may fit.",
    )
