"""Admission: what an ingress replica has accepted and not finished stays within a limit, and what cannot be
there by its deadline is refused before any work is done for it."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deployments.engine.cost import CostModel, Estimate
from deployments.engine.denoising import EngineConfig
from deployments.engine.samplers import SamplerTables
from deployments.engine.step_scheduler import Group
from serve.errors import DeadlineTooEarlyError, DeadlineTooEarlyNowError, QueueFullError
from serve.generation import GenerationRequest

# Weight of the newest request in the running mean of how long one takes.
_NEWEST = 0.2


class Estimator:
    """How long requests take by the cost model.

    num_denoisers: replicas that share the load, at least
    """

    def __init__(
        self, engine: EngineConfig, tables: SamplerTables, scale_factor: int, num_denoisers: int
    ) -> None:
        self._engine = engine
        self._tables = tables
        self._scale_factor = scale_factor
        self._num_denoisers = num_denoisers

    def estimate(self, request: GenerationRequest, cost: CostModel, other_rows: int = 0) -> Estimate:
        """Beside other_rows rows of others, spread over the replicas."""
        shape = (request.height // self._scale_factor, request.width // self._scale_factor)
        group = Group(shape, request.deterministic)
        return cost.estimate(
            shape,
            num_calls=self._tables.table(request.sampler, request.num_inference_steps).num_rows,
            num_rows=request.rows_per_image,
            num_images=request.num_images,
            row_cap=self._engine.row_cap(group, cost.forward),
            other_rows=math.ceil(other_rows / self._num_denoisers),
            fixed_rows=self._engine.deterministic_rows if request.deterministic else None,
        )


class Admission:
    """Counts images and their rows. What is refused is refused before any work is done for it."""

    def __init__(self, max_queue: int, estimator: Estimator) -> None:
        self._max_queue = max_queue
        self._estimator = estimator
        self._queued = 0
        self._queued_rows = 0
        self._mean_s = 1.0

    def check_deadline(self, request: GenerationRequest, cost: CostModel) -> None:
        """Of an admitted request with a deadline.

        Raises DeadlineTooEarlyError, or DeadlineTooEarlyNowError where less load would help.
        """
        assert request.deadline is not None, "only deadlines are checked"
        left_s = request.deadline - time.time()
        other_rows = self._queued_rows - request.num_images * request.rows_per_image
        alone_s = self._estimator.estimate(request, cost).latency_s
        now_s = self._estimator.estimate(request, cost, other_rows).latency_s
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
    def admitted(self, request: GenerationRequest) -> Iterator[None]:
        """Holds the images' places. Raises QueueFullError, which says when to come again."""
        num_images, num_rows = request.num_images, request.num_images * request.rows_per_image
        if self._queued + num_images > self._max_queue:
            raise QueueFullError(
                f"{self._queued} images are queued and {num_images} more were asked for; "
                f"at most {self._max_queue} are allowed. Try again later.",
                retry_after_s=max(1, math.ceil(self._mean_s)),
            )
        self._queued += num_images
        self._queued_rows += num_rows
        started = time.monotonic()
        try:
            yield
        finally:
            self._queued -= num_images
            self._queued_rows -= num_rows
            self._mean_s += _NEWEST * (time.monotonic() - started - self._mean_s)
