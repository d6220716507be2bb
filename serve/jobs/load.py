"""The jobs' load on the denoisers, for estimating how long a synchronous request would wait."""

import asyncio
import logging
from collections.abc import Callable

from serve.capacity.admission import JobsWork
from serve.errors import JobStoreUnavailableError
from serve.generation import GenerationRequest
from serve.jobs.job import Job
from serve.jobs.news import Audience, news_or_timeout
from serve.jobs.store import JobStore

logger = logging.getLogger("ray.serve")

_LOOK_INTERVAL_S = 1.0
# Without waiting or running jobs, news wakes the loop. This interval is for lost news.
_IDLE_INTERVAL_S = 10.0


class JobLoad:
    """The load in the job store. It is read in the background, so that no request waits for a database.

    num_ingresses: ingress replicas that share the load
    work_s: device-seconds of a request; None while costs are unknown
    """

    def __init__(
        self,
        store: JobStore,
        num_ingresses: Callable[[], int],
        work_s: Callable[[GenerationRequest], float | None],
    ) -> None:
        self._work_s = work_s
        self._store = store
        self._num_ingresses = num_ingresses
        self._share = JobsWork()

    def share(self) -> JobsWork:
        """An ingress replica's share, as of the last look."""
        return self._share

    async def watch(self) -> None:
        """Keeps the share up to date until cancelled."""
        changed = asyncio.Event()
        with self._store.news.listening(Audience.CLIENTS, changed):
            while True:
                has_looked = await self._try_to_look()
                await asyncio.sleep(_LOOK_INTERVAL_S)
                if has_looked and self._share == JobsWork():
                    await news_or_timeout(changed, _IDLE_INTERVAL_S - _LOOK_INTERVAL_S)
                else:
                    changed.clear()

    async def _try_to_look(self) -> bool:
        try:
            await self._look()
            return True
        except JobStoreUnavailableError as error:
            logger.warning("what jobs are under way could not be read, the last known are kept: %s", error)
        except Exception:  # the boundary of a loop that must not end
            logger.exception("the running jobs could not be read; the last known are kept")
        return False

    async def _look(self) -> None:
        under_way, parts = await self._store.under_way(), self._num_ingresses()
        self._share = JobsWork(
            rows=sum(map(_rows_left, under_way.jobs)) / parts,
            work_s=sum(map(self._work_left_s, under_way.jobs)) / parts,
            is_refilled=under_way.is_more_waiting,
        )

    def _work_left_s(self, job: Job) -> float:
        return (self._work_s(job.request) or 0.0) * (1 - job.fraction_done)


def _rows_left(job: Job) -> int:
    return (job.request.num_images - len(job.output)) * job.request.rows_per_image
