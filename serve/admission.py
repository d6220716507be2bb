"""Admission: what an ingress replica has accepted and not finished stays within limits, in images and in
seconds of work, and what cannot be there by its deadline is refused before any work is done for it."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deployments.engine.cost import CostModel
from deployments.engine.denoising import EngineConfig
from deployments.engine.samplers import SamplerTables
from deployments.engine.step_scheduler import Group
from serve.errors import DeadlineTooEarlyError, DeadlineTooEarlyNowError, QueueFullError
from serve.generation import GenerationRequest

# Weight of the newest request in the running mean of how long one takes.
_NEWEST = 0.2


class Estimator:
    """How long requests take by the cost model.

    num_denoisers: that share the load of one ingress replica, at the moment
    """

    def __init__(
        self,
        engine: EngineConfig,
        tables: SamplerTables,
        scale_factor: int,
        num_denoisers: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._tables = tables
        self._scale_factor = scale_factor
        self._num_denoisers = num_denoisers

    def latency_s(self, request: GenerationRequest, cost: CostModel, other_rows: float = 0) -> float:
        """Until its last image is there, beside other_rows rows of others, spread over the replicas."""
        group = self._group(request)
        return cost.latency_s(
            group.latent_shape,
            num_calls=self._num_calls(request),
            num_rows=request.rows_per_image,
            num_images=request.num_images,
            row_cap=self._engine.row_cap(group, cost.forward),
            other_rows=math.ceil(other_rows / self._num_denoisers()),
            fixed_rows=self._engine.deterministic_rows if request.deterministic else None,
        )

    def work_s(self, request: GenerationRequest, cost: CostModel) -> float:
        """Device-seconds of denoising it."""
        num_rows = request.num_images * request.rows_per_image
        return self._engine.work_s(self._group(request), cost.forward, self._num_calls(request), num_rows)

    def wait_s(self, work_s: float) -> float:
        """How long the denoisers need for so much work."""
        return work_s / self._num_denoisers()

    def _group(self, request: GenerationRequest) -> Group:
        shape = (request.height // self._scale_factor, request.width // self._scale_factor)
        return Group(shape, request.deterministic)

    def _num_calls(self, request: GenerationRequest) -> int:
        return self._tables.table(request.sampler, request.num_inference_steps).num_calls


@dataclass(frozen=True, slots=True)
class JobsWork:
    """What jobs under way keep the denoisers busy with: an ingress replica's share of it.

    work_s: device-seconds of denoising; is_refilled: more jobs wait, which come in as these are done
    """

    rows: float = 0.0
    work_s: float = 0.0
    is_refilled: bool = False


class Admission:
    """Counts images, their rows and their work. What is refused is refused before any work is done for it.

    max_queue: images; max_wait_s: seconds that the denoisers may be busy with what is accepted
    jobs: what they do besides, at the moment
    """

    def __init__(
        self,
        max_queue: int,
        max_wait_s: float,
        estimator: Estimator,
        jobs: Callable[[], JobsWork] = JobsWork,
    ) -> None:
        self._max_queue = max_queue
        self._max_wait_s = max_wait_s
        self._estimator = estimator
        self._jobs = jobs
        self._work_s = 0.0
        self._queued = 0
        self._queued_rows = 0
        self._mean_s = 1.0

    def check_deadline(self, request: GenerationRequest, cost: CostModel) -> None:
        """Of an admitted request with a deadline.

        Raises DeadlineTooEarlyError, or DeadlineTooEarlyNowError where less load would help.
        """
        assert request.deadline is not None, "only deadlines are checked"
        left_s = request.deadline - time.time()
        own_rows = request.num_images * request.rows_per_image
        other_rows = self._queued_rows - own_rows + self._jobs().rows
        alone_s = self._estimator.latency_s(request, cost)
        now_s = self._estimator.latency_s(request, cost, other_rows)
        if alone_s > left_s:
            raise DeadlineTooEarlyError(
                f"deadline_s: {left_s:.2f} s are left, and alone the request takes about {alone_s:.2f} s.",
                "deadline_s",
            )
        if now_s > left_s:
            raise DeadlineTooEarlyNowError(
                f"deadline_s: {left_s:.2f} s are left, and beside what is served now the request takes about "
                f"{now_s:.2f} s ({alone_s:.2f} s alone). Try again later.",
                "deadline_s",
                retry_after_s=max(1, math.ceil(self._mean_s)),
            )

    @contextmanager
    def admitted(self, request: GenerationRequest, cost: CostModel | None) -> Iterator[None]:
        """Holds the images' places. Raises QueueFullError, which says when to come again.

        cost: None before it is known; then only images count
        """
        num_images, num_rows = request.num_images, request.num_images * request.rows_per_image
        if self._queued + num_images > self._max_queue:
            raise QueueFullError(
                f"{self._queued} images are queued and {num_images} more were asked for; "
                f"at most {self._max_queue} are allowed. Try again later.",
                retry_after_s=max(1, math.ceil(self._mean_s)),
            )
        jobs = self._jobs()
        wait_s = self._estimator.wait_s(self._work_s + jobs.work_s)
        if wait_s > self._max_wait_s:
            raise QueueFullError(
                f"The request would wait for about {wait_s:.1f} s; at most {self._max_wait_s:g} s are "
                "allowed. Try again later.",
                retry_after_s=max(1, math.ceil(self._shrunk_in_s(wait_s, jobs))),
            )
        work_s = self._estimator.work_s(request, cost) if cost else 0.0
        self._work_s += work_s
        self._queued += num_images
        self._queued_rows += num_rows
        started = time.monotonic()
        try:
            yield
        finally:
            self._work_s -= work_s
            self._queued -= num_images
            self._queued_rows -= num_rows
            self._mean_s += _NEWEST * (time.monotonic() - started - self._mean_s)

    def _shrunk_in_s(self, wait_s: float, jobs: JobsWork) -> float:
        """Until the wait is no longer than it may be, if nothing else is accepted.

        Where jobs take the places of jobs, only what is not theirs shrinks, by its share of what is done.
        """
        excess_s = wait_s - self._max_wait_s
        if not jobs.is_refilled:
            return excess_s
        own_s = self._estimator.wait_s(self._work_s)
        return wait_s if own_s < excess_s else wait_s * excess_s / own_s
