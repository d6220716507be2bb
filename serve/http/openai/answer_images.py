"""Images of plain answers by URL: into the object store, where they are for as long as OpenAI's."""

import asyncio
from collections.abc import Sequence

from starlette.requests import Request

from deployments.engine.messages import EncodedImage
from serve.config.jobs import JobsConfig
from serve.errors import InvalidRequestError, ObjectStoreUnavailableError, StorageFullError
from serve.http.addresses import base_url
from serve.http.files import FILES_PATH
from serve.jobs.objects import ObjectStore, answer_key

_PATIENCE_S = 2.0  # with URLs that nobody has asked for


class AnswerImages:
    """Stores images and names their URLs. The runner deletes them when their time is over."""

    def __init__(self, objects: ObjectStore, config: JobsConfig) -> None:
        self._objects = objects
        self._is_kept = config.answer_retention_s > 0
        self._public_url = config.public_url

    def check(self) -> None:
        """Raises InvalidRequestError where there are no URLs."""
        if not self._is_kept:
            raise InvalidRequestError(
                "response_format: 'url' was given; this server keeps no images of answers "
                "(jobs.answer_retention_s is 0). Allowed is 'b64_json'.",
                "response_format",
            )

    async def urls(self, images: Sequence[EncodedImage], request: Request) -> list[str]:
        """In the order of the images, which are all stored at once.

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
        """As `urls`; None where there are none, or where the object store has no room or takes long."""
        if not self._is_kept:
            return None
        try:
            return await asyncio.wait_for(self.urls(images, request), _PATIENCE_S)
        except (StorageFullError, ObjectStoreUnavailableError, TimeoutError):
            return None
