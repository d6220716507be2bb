"""The cost model: how long one forward takes, by latent shape and rows, as measured on this device.

It is what the row cap, the time left and the order of turns are computed from.
"""

import bisect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deployments.engine.messages import LatentShape

# Up to here more rows per forward still raised throughput by enough to be worth their latency.
KNEE_THROUGHPUT = 0.95


@dataclass(frozen=True, slots=True)
class CostModel:
    """curves: per latent shape, (rows, seconds of one forward), rising in rows."""

    curves: Mapping[LatentShape, tuple[tuple[int, float], ...]]

    def seconds(self, shape: LatentShape, rows: int) -> float:
        """Seconds of one forward: linear between measured points, by area between shapes."""
        nearest = self._nearest(shape)
        points = self.curves[nearest]
        counts = [count for count, _ in points]
        right = min(max(bisect.bisect_left(counts, rows), 1), len(points) - 1)
        if len(points) == 1:
            seconds = points[0][1] * rows / points[0][0]
        else:
            (rows_a, seconds_a), (rows_b, seconds_b) = points[right - 1], points[right]
            seconds = seconds_a + (seconds_b - seconds_a) * (rows - rows_a) / (rows_b - rows_a)
        return max(seconds, 0.0) * _area(shape) / _area(nearest)

    def knee(self, shape: LatentShape) -> int:
        """The fewest rows at which a forward does KNEE_THROUGHPUT of the best rows per second measured."""
        points = self.curves[self._nearest(shape)]
        best = max(rows / seconds for rows, seconds in points)
        return next(rows for rows, seconds in points if rows / seconds >= KNEE_THROUGHPUT * best)

    def _nearest(self, shape: LatentShape) -> LatentShape:
        return min(self.curves, key=lambda known: abs(_area(known) - _area(shape)))


def _area(shape: LatentShape) -> int:
    return shape[0] * shape[1]


def row_counts(max_rows: int) -> list[int]:
    """The row counts that are measured: 1, 2, 4, ... and max_rows itself."""
    return sorted({*(2**power for power in range(max_rows.bit_length())), max_rows})


def measure(
    forward: Callable[[LatentShape, int], None],
    shapes: Sequence[LatentShape],
    max_rows: int,
    repeats: int = 3,
) -> CostModel:
    """Times `forward(shape, rows)`, which must return only when the device is done: the best of the repeats,
    since whatever else the machine does can only add to a time."""
    curves = {}
    for shape in shapes:
        points = []
        for rows in row_counts(max_rows):
            forward(shape, rows)  # warms up: kernels are chosen and memory is allocated at the first call
            timings = []
            for _ in range(repeats):
                started = time.perf_counter()
                forward(shape, rows)
                timings.append(time.perf_counter() - started)
            points.append((rows, min(timings)))
        curves[shape] = tuple(points)
    return CostModel(curves)
