"""Admission. The accepted and unfinished work of an ingress replica stays within limits, in images and in
seconds of work. A request that cannot meet its deadline is refused before any work is done for it."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve.errors import DeadlineTooEarlyError, DeadlineTooEarlyNowError, QueueFullError
from serve.generation import GenerationRequest


@dataclass(frozen=True, slots=True)
class JobsWork:
    """An ingress replica's share of the jobs' work on the denoisers.

    work_s: device-seconds of denoising; is_refilled: more jobs are waiting, which start as others finish
    """

    rows: float = 0.0
    work_s: float = 0.0
    is_refilled: bool = False


class Admission:
    """Counts images, their rows and their work. Requests are refused before any work is done for them.

    max_queue: in images; max_wait_s: seconds that the denoisers may be busy with accepted requests
    num_denoisers: current number of replicas that share the load of this ingress replica
    jobs: the denoisers' current work for jobs
    """

    def __init__(
        self,
        max_queue: int,
        max_wait_s: float,
        num_denoisers: Callable[[], float],
        jobs: Callable[[], JobsWork] = JobsWork,
    ) -> None:
        self._max_queue = max_queue
        self._max_wait_s = max_wait_s
        self._num_denoisers = num_denoisers
        self._jobs = jobs
        self._work_s = 0.0
        self._queued = 0
        self._queued_rows = 0

    def check_deadline(self, request: GenerationRequest, latency_s: Callable[[float], float]) -> None:
        """Checks an admitted request that has a deadline.

        latency_s: seconds that the request takes on a denoiser that also has the given number of other rows
        Raises DeadlineTooEarlyError, or DeadlineTooEarlyNowError if less load would help.
        """
        assert request.deadline is not None, "only deadlines are checked"
        left_s = max(0.0, request.deadline - time.time())
        other_rows = self._queued_rows - request.num_rows + self._jobs().rows
        alone_s = latency_s(0.0)
        now_s = latency_s(other_rows / self._num_denoisers())
        if alone_s > left_s:
            raise DeadlineTooEarlyError(
                f"deadline_s: {left_s:.2f} s are left, but the request takes about {alone_s:.2f} s alone.",
                "deadline_s",
            )
        if now_s > left_s:
            raise DeadlineTooEarlyNowError(
                f"deadline_s: {left_s:.2f} s are left, but under the current load the request takes about "
                f"{now_s:.2f} s ({alone_s:.2f} s alone). Try again later.",
                "deadline_s",
                retry_after_s=_whole_s(now_s - left_s),
            )

    @contextmanager
    def admitted(self, request: GenerationRequest) -> Iterator[None]:
        """Holds places for the request's images. Raises QueueFullError, which says when to come again.

        If the work of a request is not known, only its images count.
        """
        self.check_room(request.num_images)
        work_s = request.work_s or 0.0
        self._work_s += work_s
        self._queued += request.num_images
        self._queued_rows += request.num_rows
        try:
            yield
        finally:
            self._work_s -= work_s
            self._queued -= request.num_images
            self._queued_rows -= request.num_rows

    def check_room(self, num_images: int) -> None:
        """Raises QueueFullError if a request for so many images could not be admitted now."""
        jobs = self._jobs()
        wait_s = self._wait_s(self._work_s + jobs.work_s)
        excess = self._queued + num_images - self._max_queue
        if excess > 0:
            raise QueueFullError(
                f"{self._queued} images are queued and {num_images} more were requested; "
                f"at most {self._max_queue} are allowed. Try again later.",
                # Accepted work shares the denoisers, so this share of it is done in this share of the wait.
                retry_after_s=_whole_s(wait_s * min(1.0, excess / max(1, self._queued))),
            )
        if wait_s > self._max_wait_s:
            raise QueueFullError(
                f"The request would wait for about {wait_s:.1f} s; at most {self._max_wait_s:g} s are "
                "allowed. Try again later.",
                retry_after_s=_whole_s(self._shrunk_in_s(wait_s, jobs)),
            )

    def _wait_s(self, work_s: float) -> float:
        """Seconds that the denoisers need for the work."""
        return work_s / self._num_denoisers()

    def _shrunk_in_s(self, wait_s: float, jobs: JobsWork) -> float:
        """Seconds until the wait is short enough, if nothing else is accepted.

        If waiting jobs replace finished ones, only the other work shrinks, by its share of the work done.
        """
        excess_s = wait_s - self._max_wait_s
        if not jobs.is_refilled:
            return excess_s
        own_s = self._wait_s(self._work_s)
        return wait_s if own_s < excess_s else wait_s * excess_s / own_s


def _whole_s(seconds: float) -> int:
    """Whole seconds for `Retry-After`, at least 1."""
    return max(1, math.ceil(seconds))
