"""The pictures that jobs start from, in the object store for as long as the job's images.

What is kept is what was made of the client's file: one PNG of the decoded pixels, with the mask as its
transparency. So a runner reads only files that we wrote.
"""

import asyncio
import io
from collections.abc import Collection

import numpy as np
from PIL import Image

from deployments.engine.messages import Picture
from serve.generation import StartPicture
from serve.jobs.objects import ObjectStore

FOLDER = "inputs"
# A folder without a job, whose process died before the job was on disk, is deleted after this.
ABANDONED_S = 3600.0


class JobInputs:
    """All methods may raise ObjectStoreUnavailableError."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def keep(self, job_id: str, picture: Picture) -> None:
        """Stores a job's picture, on disk when this returns. Raises StorageFullError."""
        await self._objects.put(_key(job_id), await asyncio.to_thread(_to_png, picture), "image/png")

    async def read(self, job_id: str, start: StartPicture) -> Picture:
        """Raises ObjectNotFoundError."""
        data = await self._objects.read(_key(job_id))
        return await asyncio.to_thread(_from_png, data, start)

    async def delete(self, job_id: str) -> None:
        await self._objects.delete_folder(f"{FOLDER}/{job_id}")

    async def abandoned(self) -> Collection[str]:
        """Ids of jobs whose pictures are old enough to have a job, if they ever get one."""
        return await self._objects.folders(FOLDER, ABANDONED_S)


def _key(job_id: str) -> str:
    return f"{FOLDER}/{job_id}/picture"


def _to_png(picture: Picture) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _from_png(data: bytes, start: StartPicture) -> Picture:
    return Picture(np.asarray(Image.open(io.BytesIO(data), formats=["PNG"])), start.crop)
