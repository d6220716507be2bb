"""Admission: what an ingress replica has accepted and not finished stays within a limit."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from serve.errors import QueueFullError

# Weight of the newest request in the running mean of how long one takes.
_NEWEST = 0.2


class Admission:
    """Counts images. What is refused is refused before any work is done for it."""

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self._queued = 0
        self._mean_s = 1.0

    @contextmanager
    def admitted(self, num_images: int) -> Iterator[None]:
        """Holds the images' places. Raises QueueFullError, which says when to come again."""
        if self._queued + num_images > self._max_queue:
            raise QueueFullError(
                f"{self._queued} images are queued and {num_images} more were asked for; "
                f"at most {self._max_queue} are allowed. Try again later.",
                retry_after_s=max(1, math.ceil(self._mean_s)),
            )
        self._queued += num_images
        started = time.monotonic()
        try:
            yield
        finally:
            self._queued -= num_images
            self._mean_s += _NEWEST * (time.monotonic() - started - self._mean_s)
