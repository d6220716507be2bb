"""What a replica has to do, in seconds of its device: autoscaling goes by it (serve.autoscaling)."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.serve import metrics


class Work:
    """Counts what has been accepted and what of it is not done yet. For one event loop."""

    def __init__(self) -> None:
        self._held_s = 0.0
        self._accepted_s = 0.0
        self._accepted = 0
        self._gauge = metrics.Gauge(
            "midstep_work_seconds", "Device-seconds of what a replica has accepted and not done."
        )
        self._accepted_work = metrics.Counter(
            "midstep_accepted_work_seconds_total", "Device-seconds of what a replica has accepted."
        )
        self._accepted_requests = metrics.Counter(
            "midstep_accepted_requests_total", "Requests that a replica has accepted."
        )

    @contextmanager
    def of(self, seconds: float) -> Iterator[None]:
        """Around the work on a request that takes so many seconds of the device; none if all is cached."""
        self._held_s += seconds
        self._accepted_s += seconds
        self._accepted += 1
        self._accepted_requests.inc()
        if seconds:  # Ray's counters refuse to count nothing
            self._accepted_work.inc(seconds)
        self._gauge.set(self._held_s)
        try:
            yield
        finally:
            self._held_s -= seconds
            self._gauge.set(self._held_s)

    def stats(self) -> dict[str, float]:
        """For `record_autoscaling_stats`; the names are those that serve.autoscaling reads."""
        # Ray exports a gauge once for each time it is set, and what stands still must be seen as well.
        self._gauge.set(self._held_s)
        return {"work_s": self._held_s, "accepted_s": self._accepted_s, "accepted": self._accepted}
