"""What jobs keep the denoisers busy with, for those who tell a synchronous request how long it would wait."""

import asyncio
import logging
from collections.abc import Callable

from deployments.engine.cost import CostModel
from deployments.engine.models import ModelInfo
from deployments.engine.step_scheduler import Group
from serve.capacity.admission import Estimator, JobsWork
from serve.config.app import AppConfig
from serve.errors import JobStoreUnavailableError
from serve.jobs.job import Job
from serve.jobs.records import UnderWay
from serve.jobs.store import JobStore

logger = logging.getLogger("ray.serve")

_LOOK_INTERVAL_S = 1.0


class JobLoad:
    """As the job store has it. It is looked up in the background: no request waits for a database here.

    known_cost: the cost model, None before it is known; num_ingresses: that share the load
    """

    def __init__(
        self,
        store: JobStore,
        estimator: Estimator,
        known_cost: Callable[[], CostModel | None],
        num_ingresses: Callable[[], int],
    ) -> None:
        self._store = store
        self._estimator = estimator
        self._known_cost = known_cost
        self._num_ingresses = num_ingresses
        self._share = JobsWork()

    def share(self) -> JobsWork:
        """An ingress replica's, when it was last looked up."""
        return self._share

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self._look()
            except JobStoreUnavailableError as error:
                logger.warning(
                    "what jobs are under way could not be read, the last known are kept: %s", error
                )
            except Exception:  # the boundary of a loop that must not end
                logger.exception("what jobs are under way could not be read; the last known are kept")
            await asyncio.sleep(_LOOK_INTERVAL_S)

    async def _look(self) -> None:
        cost = self._known_cost()
        if cost is None:
            return
        under_way = await self._store.under_way()
        # In a thread: a sampler that is met for the first time takes a while.
        self._share = await asyncio.to_thread(self._share_of, under_way, cost)

    def _share_of(self, under_way: UnderWay, cost: CostModel) -> JobsWork:
        parts = self._num_ingresses()
        return JobsWork(
            rows=sum(map(_rows_left, under_way.jobs)) / parts,
            work_s=sum(self._work_left_s(job, cost) for job in under_way.jobs) / parts,
            is_refilled=under_way.is_more_waiting,
        )

    def _work_left_s(self, job: Job, cost: CostModel) -> float:
        return self._estimator.work_s(job.request, cost) * (1 - job.fraction_done)


def crowding_problem(config: AppConfig, info: ModelInfo, cost: CostModel) -> str | None:
    """What is wrong with `jobs.max_running_images`; None where jobs leave room for synchronous requests."""
    engine = config.engine_config(info).padded_to(cost.forward.padded_to)
    group = Group(config.latent_shapes(info)[0], deterministic=False)
    image_s = engine.work_s(group, cost.forward, config.defaults.num_inference_steps, num_rows=2)
    num_images = config.images_per_runner() * config.jobs.num_runners
    wait_s = num_images * image_s / config.denoiser.autoscaling.max_replicas
    if wait_s < config.limits.max_wait_s:
        return None
    return (
        f"jobs.max_running_images: {num_images} images, which jobs may have under way, keep all denoisers "
        f"that there may be busy for {wait_s:.0f} s. Beside them every synchronous request is refused, "
        f"as it would wait for more than {config.limits.max_wait_s:g} s (limits.max_wait_s)"
    )


def _rows_left(job: Job) -> int:
    return (job.request.num_images - len(job.output)) * job.request.rows_per_image
