"""Deletes from the object store what jobs no longer need: first the objects, then the rows that name them."""

from collections.abc import Sequence

from serve.jobs.inputs import JobInputs
from serve.jobs.job import Job
from serve.jobs.objects import ObjectStore
from serve.jobs.store import JobStore

_AT_ONCE = 100


class Cleaning:
    """retention_s, forget_after_s: how long a finished job's data and its row are kept"""

    def __init__(
        self,
        store: JobStore,
        objects: ObjectStore,
        inputs: JobInputs,
        retention_s: float,
        forget_after_s: float,
    ) -> None:
        self._store = store
        self._objects = objects
        self._inputs = inputs
        self._retention_s = retention_s
        self._forget_after_s = forget_after_s

    async def after_work(self, job: Job) -> None:
        """Deletes the checkpoints and previews of a job that is over, and all of a job that was deleted.

        The runner of a job calls it when it stores nothing of the job any more. A deleted job's objects may
        have been deleted before, but the runner has learned of that late and stored another one.
        """
        now = await self._store.find(job)
        if now is None or not now.state.is_final:
            return
        if now.is_deleted:
            await self._delete_objects(now)
        else:
            await self._delete_unfinished(now)

    async def remove_deleted(self) -> None:
        """Removes the data of jobs that their clients have deleted."""
        while deleted := await self._store.housekeeping.deleted(_AT_ONCE):
            await self._remove_data(deleted)

    async def remove_old(self) -> None:
        """Removes the data of old jobs, and at last their rows."""
        housekeeping = self._store.housekeeping
        while expired := await housekeeping.expired(self._retention_s, _AT_ONCE):
            await self._remove_data(expired)
        while old := await housekeeping.old(self._forget_after_s, _AT_ONCE):
            for job in old:
                if job.is_deleted:  # once more: its runner may have died when it had just stored something
                    await self._delete_objects(job)
            await housekeeping.forget(old)

    async def _remove_data(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            await self._delete_objects(job)
        await self._store.housekeeping.remove_data(jobs)

    async def _delete_objects(self, job: Job) -> None:
        await self._objects.delete_folder(f"images/{job.id}")
        await self._delete_unfinished(job)
        await self._inputs.delete(job.id)

    async def _delete_unfinished(self, job: Job) -> None:
        await self._objects.delete_folder(f"checkpoints/{job.id}")
        if job.request.num_previews:  # most jobs have none, and in a bucket a search costs money
            await self._objects.delete_folder(f"previews/{job.id}")
