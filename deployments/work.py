"""A replica's work in seconds of its device. Autoscaling goes by it (serve.capacity.autoscaling)."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.serve import metrics


class Tally:
    """The accepted work, and the part of it that is not done."""

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
        """Removes an accepted request."""
        self._held.remove(seconds)

    @property
    def held_s(self) -> float:
        """The sum of the held work. A running sum would keep a residue that keeps a replica for ever."""
        return sum(self._held)

    def stats(self) -> dict[str, float]:
        """The names are those that serve.capacity.autoscaling reads. accepted_s2: the sum of the squares."""
        return {
            "work_s": self.held_s,
            "accepted_s": self._accepted_s,
            "accepted_s2": self._accepted_s2,
            "accepted": self._accepted,
        }


class Work:
    """A replica's tally, also exported as metrics. For use in one event loop."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._gauge = metrics.Gauge(
            "midstep_work_seconds", "Device-seconds of work that a replica has accepted and not done."
        )
        self._accepted_work = metrics.Counter(
            "midstep_accepted_work_seconds_total", "Device-seconds of work that a replica has accepted."
        )
        self._accepted_requests = metrics.Counter(
            "midstep_accepted_requests_total", "Requests that a replica has accepted."
        )

    @contextmanager
    def of(self, seconds: float) -> Iterator[None]:
        """Counts work while it is done. seconds: device-seconds of the request, 0 if all of it is cached"""
        self._tally.accept(seconds)
        self._accepted_requests.inc()
        if seconds:  # Ray's counters refuse an increment of 0
            self._accepted_work.inc(seconds)
        self._gauge.set(self._tally.held_s)
        try:
            yield
        finally:
            self._tally.finish(seconds)
            self._gauge.set(self._tally.held_s)

    def stats(self) -> dict[str, float]:
        """The tally, for `record_autoscaling_stats`."""
        # Ray exports a gauge only once after each `set`. An unchanged value must be visible too.
        self._gauge.set(self._tally.held_s)
        return self._tally.stats()
