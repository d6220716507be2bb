"""The pictures that jobs start from, in the object store for as long as the jobs' images.

What is kept is what was made of the client's file: one PNG of the decoded pixels, with the mask as its
transparency. So a runner reads only files that we wrote.

A row is written before the object, so that the object of a job that never came is found without a search: the
store may be shared with others, who know of jobs that we do not know.
"""

import asyncio
import io
import logging

import numpy as np
from PIL import Image
from sqlalchemy import delete, insert, select

from deployments.engine.messages import Picture
from serve.errors import MidstepError
from serve.generation import StartPicture
from serve.jobs.database import Database, uninterrupted
from serve.jobs.objects import ObjectStore
from serve.jobs.tables import job_inputs, jobs, now_s

# A picture without a job by then never gets one: its process died, or its job was refused.
ABANDONED_S = 3600.0
_REMOVED_AT_ONCE = 100

logger = logging.getLogger("ray.serve")

_c = job_inputs.c


class JobInputs:
    """All methods may raise JobStoreUnavailableError, StorageFullError and ObjectStoreUnavailableError."""

    def __init__(self, database: Database, objects: ObjectStore) -> None:
        self.database = database
        self._objects = objects

    @uninterrupted
    async def keep(self, job_id: str, picture: Picture) -> None:
        """Stores a job's picture, on disk when this returns."""
        async with self.database.write() as connection:
            await connection.execute(insert(job_inputs).values(job_id=job_id, created_at=now_s()))
        await self._objects.put(_key(job_id), await asyncio.to_thread(_to_png, picture), "image/png")

    async def read(self, job_id: str, start: StartPicture) -> Picture:
        """Raises ObjectNotFoundError."""
        data = await self._objects.read(_key(job_id))
        return await asyncio.to_thread(_from_png, data, start)

    async def delete(self, job_id: str) -> None:
        """Deletes the picture of a job that is over or never came."""
        await self._objects.delete_folder(f"inputs/{job_id}")

    async def remove_abandoned(self) -> None:
        """Deletes pictures whose jobs never came: first the objects, then the rows that name them."""
        while old := await self._old():
            done = []
            for job_id, has_job in old.items():
                try:
                    if not has_job:
                        await self.delete(job_id)
                    done.append(job_id)
                except MidstepError as error:  # the others need not wait for it
                    logger.warning("the picture of job %s cannot be deleted yet: %s", job_id, error.detail)
            await self._forget(done)
            if len(done) < len(old):
                return

    @uninterrupted
    async def _old(self) -> dict[str, bool]:
        """Some of the old rows, by job id, and whether there is such a job."""
        statement = (
            select(_c.job_id, jobs.c.id.is_not(None))
            .outerjoin_from(job_inputs, jobs, jobs.c.id == _c.job_id)
            .where(_c.created_at < now_s() - ABANDONED_S)
            .order_by(_c.created_at)
            .limit(_REMOVED_AT_ONCE)
        )
        async with self.database.read() as connection:
            return {job_id: bool(has_job) for job_id, has_job in await connection.execute(statement)}

    @uninterrupted
    async def _forget(self, job_ids: list[str]) -> None:
        async with self.database.write() as connection:
            await connection.execute(delete(job_inputs).where(_c.job_id.in_(job_ids)))


def _key(job_id: str) -> str:
    return f"inputs/{job_id}/picture"


def _to_png(picture: Picture) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _from_png(data: bytes, start: StartPicture) -> Picture:
    return Picture(np.asarray(Image.open(io.BytesIO(data), formats=["PNG"])), start.crop)
