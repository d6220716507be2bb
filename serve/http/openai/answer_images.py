"""URLs for images of plain answers. They are in the object store for as long as OpenAI keeps its own."""

import asyncio
from collections.abc import Sequence

from starlette.requests import Request

from deployments.engine.messages import EncodedImage
from serve.config.jobs import JobsConfig
from serve.errors import InvalidRequestError, ObjectStoreUnavailableError, StorageFullError
from serve.http.addresses import base_url
from serve.http.files import FILES_PATH
from serve.jobs.objects import ObjectStore, answer_key

_PATIENCE_S = 2.0  # for URLs that nobody has asked for


class AnswerImages:
    """Stores images and returns their URLs. The runner deletes them after their retention time."""

    def __init__(self, objects: ObjectStore, config: JobsConfig) -> None:
        self._objects = objects
        self._is_kept = config.answer_retention_s > 0
        self._public_url = config.public_url
        self._late: asyncio.Task[list[str]] | None = None  # storing that took too long

    def check(self) -> None:
        """Raises InvalidRequestError if there can be no URLs."""
        if not self._is_kept:
            raise InvalidRequestError(
                "response_format: 'url' was given; this server keeps no images of answers "
                "(jobs.answer_retention_s is 0). Allowed is 'b64_json'.",
                "response_format",
            )

    async def urls(self, images: Sequence[EncodedImage], request: Request) -> list[str]:
        """The URLs in the order of the images, which are stored at the same time.

        Raises StorageFullError and ObjectStoreUnavailableError.
        """
        keys = [answer_key(image.media_type) for image in images]
        await asyncio.gather(
            *(
                self._objects.put(key, image.data, image.media_type, is_durable=False)
                for key, image in zip(keys, images, strict=True)
            )
        )
        base = base_url(request, self._public_url)
        return [f"{base}{FILES_PATH}/{key}" for key in keys]

    async def urls_if_possible(self, images: Sequence[EncodedImage], request: Request) -> list[str] | None:
        """The same as `urls`; None if there are no URLs, or if the object store is full or slow.

        While a store hangs, only one answer at a time tries it: each holds threads that others need.
        """
        if not self._is_kept or not (self._late is None or self._late.done()):
            return None
        storing = asyncio.create_task(self.urls(images, request))
        storing.add_done_callback(_forget_error)
        try:
            return await asyncio.wait_for(asyncio.shield(storing), _PATIENCE_S)
        except TimeoutError:
            self._late = storing
        except (StorageFullError, ObjectStoreUnavailableError):
            pass
        return None


def _forget_error(storing: "asyncio.Task[list[str]]") -> None:
    """For an error that comes when nobody waits any more."""
    if not storing.cancelled():
        storing.exception()
