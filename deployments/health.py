"""Whether a stage can go on: a device that fails every call at once looks idle and draws requests."""

from collections.abc import Iterator
from contextlib import contextmanager

# So many failed calls in a row, with none between that worked, and the device is taken for lost.
MAX_FAILURES = 3


class Health:
    """Counts failed calls in a row."""

    def __init__(self) -> None:
        self._failures = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around a call."""
        try:
            yield
        except Exception:
            self._failures += 1
            raise
        self._failures = 0

    def check(self) -> None:
        """Raises RuntimeError, as Serve's `check_health` does to have the replica replaced."""
        if self._failures >= MAX_FAILURES:
            raise RuntimeError(f"the last {self._failures} calls failed")
