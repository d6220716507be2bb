"""Calls of a VAE for items of several shapes: one shape per call, each no longer than it may be."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

from deployments.engine.cost import StageCost
from deployments.engine.fitting import Fitting
from deployments.engine.messages import LatentShape
from deployments.engine.stage_errors import StageError
from deployments.forwards import Forwards

Part = TypeVar("Part")
Item = TypeVar("Item")
Result = TypeVar("Result")


class ShapedBatches(Generic[Part, Item, Result]):
    """Runs `call`, which takes one model's part and items of one shape, on any items of any parts.

    shape_of: an item's latent shape; cost: of calls
    most_of: the items of a shape that fit into a call; None for any number
    max_hold_s: longest call in seconds, since others may share the device; longer ones are split
    """

    def __init__(
        self,
        call: Callable[[Part, Sequence[Item]], Sequence[Result | StageError]],
        shape_of: Callable[[Part, Item], LatentShape],
        cost: StageCost,
        max_hold_s: float,
        fitting: Fitting,
        forwards: Forwards,
        most_of: Callable[[LatentShape], int] | None = None,
    ) -> None:
        self._call = call
        self._shape_of = shape_of
        self._cost = cost
        self._max_hold_s = max_hold_s
        self._fitting = fitting
        self._forwards = forwards
        self._most_of = most_of

    def seconds_each(self, part: Part, item: Item, count: int) -> float:
        """Seconds of the device for an item, in a call of `count` items like it, or of as many as fit."""
        shape = self._shape_of(part, item)
        if self._most_of:
            count = min(count, self._most_of(shape))
        return self._cost.curve(shape).seconds_each(count)

    def run(self, items: Sequence[tuple[Part, Item]]) -> list[Result | StageError]:
        """A result or an error for each item, in order."""
        done: dict[int, Result | StageError] = {}
        kinds = [(id(part), self._shape_of(part, item)) for part, item in items]
        for kind in set(kinds):
            members = [index for index, found in enumerate(kinds) if found == kind]
            part, shape = items[members[0]][0], kind[1]
            left = iter(members)
            most = self._most_of(shape) if self._most_of else None
            for size in self._cost.parts(shape, len(members), self._max_hold_s, most):
                chosen = list(islice(left, size))
                results = self._run_that_fit(part, shape, [items[index][1] for index in chosen])
                done |= zip(chosen, results, strict=True)
        return [done[index] for index in range(len(items))]

    def _run_that_fit(
        self, part: Part, shape: LatentShape, items: Sequence[Item]
    ) -> list[Result | StageError]:
        def call(some: Sequence[Item]) -> Sequence[Result | StageError]:
            with self._forwards.measured(len(some), self._cost.seconds(shape, len(some))):
                return self._call(part, some)

        return self._fitting.run(shape, items, call)
