"""The bytes of the pictures that requests name: by data URLs, by our own files' URLs, or by other URLs."""

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

from aiohttp import ClientError, ClientSession

from serve.errors import ImageTooLargeError, InvalidRequestError, ObjectNotFoundError
from serve.jobs.ids import is_id
from serve.jobs.objects import ObjectStore, is_image_key
from serve.jobs.uploads import Uploads
from serve.outbound import MAX_URL_LENGTH, Places, check_url, failure_reason, outbound_session
from serve.wanted import shown

_TIMEOUT_S = 10.0
_FETCHED_AT_ONCE = 16  # each may have max_bytes in memory
_DATA_URL = re.compile(r"data:[^,]{0,200},")
_UPLOADED = re.compile(r"([^/]+)/download")


class PictureSources:
    """Reads pictures. max_bytes: of a picture; allow_private: as for webhooks"""

    def __init__(self, uploads: Uploads, objects: ObjectStore, max_bytes: int, allow_private: bool) -> None:
        self._uploads = uploads
        self._objects = objects
        self._max_bytes = max_bytes
        self._allow_private = allow_private
        self._places = Places(_FETCHED_AT_ONCE, _TIMEOUT_S, "pictures")
        self._session: ClientSession | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Pictures can be fetched until this is left."""
        self._session = outbound_session(self._allow_private, _TIMEOUT_S)
        try:
            yield
        finally:
            await self._session.close()

    async def read(self, url: str, field: str) -> bytes:
        """The bytes of a picture. field: the one that names it

        Raises InvalidRequestError, which names the field, and ObjectStoreUnavailableError.
        """
        if url.startswith("data:"):
            return await asyncio.to_thread(self._in_place, url, field)
        if len(url) > MAX_URL_LENGTH:
            raise InvalidRequestError(
                f"{field}: must be a data URL, or another URL of at most {MAX_URL_LENGTH} characters; "
                f"{len(url)} were given.",
                field,
            )
        if not url.startswith(("http://", "https://")):
            raise InvalidRequestError(
                f"{field}: must be a data URL (data:image/png;base64,...), the URL of a file here, or any "
                f"http or https URL, but {shown(url)} was given.",
                field,
            )
        own = await self._own(url, field)
        return await self._fetched(url, field) if own is None else own

    def check_size(self, num_bytes: int, field: str) -> None:
        """Raises ImageTooLargeError."""
        if num_bytes > self._max_bytes:
            raise ImageTooLargeError(
                f"{field}: has {num_bytes} bytes or more; at most {self._max_bytes} are allowed.", field
            )

    def _in_place(self, url: str, field: str) -> bytes:
        head = _DATA_URL.match(url)
        if head is None or not head[0].removesuffix(",").endswith(";base64"):
            raise InvalidRequestError(
                f"{field}: must be a data URL in base64 (data:image/png;base64,...), but "
                f"{shown(url[:60])} was given.",
                field,
            )
        encoded = url[head.end() :]
        self.check_size(len(encoded) * 3 // 4 - 2, field)
        try:
            # Some encoders break lines, and some leave out the padding.
            compact = encoded.encode("ascii").translate(None, b" \t\r\n").rstrip(b"=")
            return base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)
        except ValueError as error:
            raise InvalidRequestError(f"{field}: the data URL is not base64: {error}.", field) from error

    async def _own(self, url: str, field: str) -> bytes | None:
        """The bytes of a file or an image of ours, by the part of the URL that nobody can guess; None if it
        is none of ours. The host may be any: clients reach us by several names."""
        try:
            parts = urlsplit(url)
        except ValueError:  # what is wrong with it is told before it is fetched
            return None
        key = parts.path.rpartition("/files/")[2]
        if (uploaded := _UPLOADED.fullmatch(key)) and is_id(uploaded[1]):
            signature = parse_qs(parts.query).get("signature", [""])[0]
            file = await self._uploads.signed(uploaded[1], signature)
            if file is None:
                return None
            self.check_size(file.size_bytes, field)
            key = file.key
        elif not is_image_key(key):
            return None
        try:
            return await self._objects.read(key)
        except ObjectNotFoundError:
            return None

    async def _fetched(self, url: str, field: str) -> bytes:
        assert self._session is not None, "fetching runs while the application does"
        target = check_url(url, field, self._allow_private)
        data = bytearray()
        try:
            async with (
                self._places.taken(),
                self._session.get(
                    target, allow_redirects=False, headers={"accept-encoding": "identity"}
                ) as response,
            ):
                if response.status != 200:
                    redirects = ", and redirects are not followed" if 300 <= response.status < 400 else ""
                    raise InvalidRequestError(
                        f"{field}: the server at this URL answered {response.status}{redirects}.", field
                    )
                async for chunk in response.content.iter_chunked(1 << 16):
                    data += chunk
                    self.check_size(len(data), field)
        except (TimeoutError, ClientError, OSError) as error:
            why = failure_reason(error, "the server at this URL")
            raise InvalidRequestError(f"{field}: cannot be fetched: {why}.", field) from error
        return bytes(data)
