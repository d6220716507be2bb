"""Previews of jobs under way, in the object store until the job is over."""

import logging
from collections.abc import Mapping

from serve.generation import ImagePreview
from serve.jobs.job import Job, StoredPreview
from serve.jobs.objects import ObjectStore, preview_key
from serve.jobs.rounds import AWAY

logger = logging.getLogger("ray.serve")


class Previews:
    """The latest preview of each unfinished image of a job, kept by its runner."""

    def __init__(self, job: Job, objects: ObjectStore) -> None:
        self._job_id = job.id
        self._objects = objects
        self._latest = dict(job.previews)

    @property
    def latest(self) -> Mapping[int, StoredPreview]:
        """By image index."""
        return dict(self._latest)

    async def keep(self, event: ImagePreview) -> None:
        """Stores a preview, or leaves it out if the store is away or an earlier attempt came as far."""
        before = self._latest.get(event.image_index)
        if before is not None and event.step <= before.step:
            return
        index = 0 if before is None else before.index + 1
        key = preview_key(self._job_id, event.image_index, index, event.image.media_type)
        try:
            await self._objects.put(key, event.image.data, event.image.media_type, is_durable=False)
        except AWAY as error:
            logger.warning("job %s: a preview was not stored: %s", self._job_id, error.detail)
        else:
            self._latest[event.image_index] = StoredPreview(index, event.step, key)
