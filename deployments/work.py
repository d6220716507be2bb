"""What a replica has to do, in seconds of its device: autoscaling goes by it (serve.capacity.autoscaling)."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.serve import metrics


class Tally:
    """What has been accepted, and what of it is not done yet."""

    def __init__(self) -> None:
        self._held: list[float] = []
        self._accepted_s = 0.0
        self._accepted_s2 = 0.0
        self._accepted = 0

    def accept(self, seconds: float) -> None:
        self._held.append(seconds)
        self._accepted_s += seconds
        self._accepted_s2 += seconds**2
        self._accepted += 1

    def finish(self, seconds: float) -> None:
        """Takes off a request that was accepted."""
        self._held.remove(seconds)

    @property
    def held_s(self) -> float:
        """A sum of what is there: a running one would keep a residue, for which a replica stays for ever."""
        return sum(self._held)

    def stats(self) -> dict[str, float]:
        """By the names that serve.capacity.autoscaling reads. accepted_s2: the sum of the squares."""
        return {
            "work_s": self.held_s,
            "accepted_s": self._accepted_s,
            "accepted_s2": self._accepted_s2,
            "accepted": self._accepted,
        }


class Work:
    """A replica's tally, shown as metrics too. For one event loop."""

    def __init__(self) -> None:
        self._tally = Tally()
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
        self._tally.accept(seconds)
        self._accepted_requests.inc()
        if seconds:  # Ray's counters refuse to count nothing
            self._accepted_work.inc(seconds)
        self._gauge.set(self._tally.held_s)
        try:
            yield
        finally:
            self._tally.finish(seconds)
            self._gauge.set(self._tally.held_s)

    def stats(self) -> dict[str, float]:
        """For `record_autoscaling_stats`."""
        # Ray exports a gauge once for each time it is set, and what stands still must be seen as well.
        self._gauge.set(self._tally.held_s)
        return self._tally.stats()
