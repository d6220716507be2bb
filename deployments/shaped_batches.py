"""Calls of a VAE for items of several shapes: one shape per call, each no longer than it may be."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

from deployments.engine.cost import StageCost
from deployments.engine.fitting import Fitting
from deployments.engine.messages import LatentShape
from deployments.engine.stage_errors import StageError
from deployments.forwards import Forwards

Item = TypeVar("Item")
Result = TypeVar("Result")


class ShapedBatches(Generic[Item, Result]):
    """Runs `call`, which takes items of one shape, on items of any shape.

    shape_of: an item's latent shape; cost: of calls
    max_hold_s: longest call in seconds, since others may share the device; longer ones are split
    """

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Sequence[Result | StageError]],
        shape_of: Callable[[Item], LatentShape],
        cost: StageCost,
        max_hold_s: float,
        fitting: Fitting,
        forwards: Forwards,
    ) -> None:
        self._call = call
        self._shape_of = shape_of
        self._cost = cost
        self._max_hold_s = max_hold_s
        self._fitting = fitting
        self._forwards = forwards

    def seconds_each(self, item: Item, count: int) -> float:
        """Seconds of the device for an item, in a call of `count` items like it."""
        return self._cost.curve(self._shape_of(item)).seconds_each(count)

    def run(self, items: Sequence[Item]) -> list[Result | StageError]:
        """A result or an error for each item, in order."""
        done: dict[int, Result | StageError] = {}
        shapes = [self._shape_of(item) for item in items]
        for shape in set(shapes):
            members = [index for index, found in enumerate(shapes) if found == shape]
            left = iter(members)
            for size in self._cost.parts(shape, len(members), self._max_hold_s):
                part = list(islice(left, size))
                done |= zip(part, self._run_that_fit(shape, [items[index] for index in part]), strict=True)
        return [done[index] for index in range(len(items))]

    def _run_that_fit(self, shape: LatentShape, items: Sequence[Item]) -> list[Result | StageError]:
        def call(part: Sequence[Item]) -> Sequence[Result | StageError]:
            with self._forwards.measured(len(part), self._cost.seconds(shape, len(part))):
                return self._call(part)

        return self._fitting.run(shape, items, call)
