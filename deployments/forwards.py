"""The time of a stage's model calls, next to the cost model's prediction."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ray.serve import metrics


class Forwards:
    """A replica's model calls as metrics. Ray exports them with the prefix `ray_`.

    Rows are the items that the stage batches: U-Net rows, texts or images.
    """

    def __init__(self) -> None:
        self._rows = metrics.Histogram(
            "midstep_forward_rows",
            "Rows of a forward, padding included.",
            boundaries=[1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64],
        )
        self._latency = metrics.Histogram(
            "midstep_forward_latency_seconds",
            "Time of one forward.",
            boundaries=[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5],
        )
        # Ray keeps only the buckets of a histogram's values, so its sum is a guess. Hence this counter.
        self._measured = metrics.Counter("midstep_forward_seconds_total", "Seconds that forwards took.")
        self._predicted = metrics.Counter(
            "midstep_forward_predicted_seconds_total", "Seconds that the cost model predicted for them."
        )

    def record(self, rows: int, seconds: float, predicted_s: float) -> None:
        self._rows.observe(rows)
        self._latency.observe(seconds)
        self._measured.inc(seconds)
        self._predicted.inc(predicted_s)

    @contextmanager
    def measured(self, rows: int, predicted_s: float) -> Iterator[None]:
        """Times a forward that returns when it is done. A forward that raises is not counted."""
        started = time.perf_counter()
        yield
        self.record(rows, time.perf_counter() - started, predicted_s)
