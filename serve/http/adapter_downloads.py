"""Downloads of adapters: from the hub, and from the other allowed hosts."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import ClientConnectorError, ClientError, ClientResponse, ClientSession
from yarl import URL

from deployments.adapters.files import MAX_HEADER_BYTES
from deployments.tensor_files.errors import TensorFileError
from deployments.tensor_files.headers import LENGTH_BYTES, header_length, read_header
from serve.addresses import PrivateAddressError
from serve.config.adapters import AdaptersConfig
from serve.errors import (
    AdapterNotFoundError,
    AdapterUnavailableError,
    ForbiddenError,
    InvalidRequestError,
    MidstepError,
    StorageFullError,
)
from serve.http.fetched_adapters import Download, FetchedAdapters
from serve.outbound import check_url, failure_reason, outbound_session
from serve.wanted import FetchedAdapter, is_url, shown

RETRY_AFTER_S = 30
_TIMEOUT_S = 300.0
_MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_NOT_THERE = {401, 403, 404, 410}  # the hub answers 401 for what is not there
_LATER = {408, 425, 429}  # and 500 and above
_CHUNK_BYTES = 1 << 20
_HUB = "https://huggingface.co"
_HUB_PAGE = re.compile(r"([\w.-]+/[\w.-]+)(?:/(?:blob|resolve)/([^/]+)/(.+))?/?")
# The names of a repository's only adapter, as diffusers and PEFT give them.
_USUAL_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_MAX_LIST_BYTES = 4 << 20
_MOST_NAMED = 5
_LONGEST_PLACE = 200  # characters in a sentence
Result = TypeVar("Result")


class _Place:
    """A place that is fetched from, and the errors about it. field: the one that names it"""

    def __init__(self, given: str, field: str) -> None:
        self.given = given
        self.field = field
        self._shown = without_query(given)

    def refused(self, sentence: str) -> InvalidRequestError:
        return InvalidRequestError(f"{self.field}: {self._shown} {sentence}.", self.field)

    def unavailable(self, sentence: str) -> AdapterUnavailableError:
        return AdapterUnavailableError(
            f"{self.field}: {self._shown} {sentence}. Try again later.", self.field, RETRY_AFTER_S
        )

    def answered(self, status: int) -> MidstepError:
        """The error for an answer without the file."""
        sentence = f"cannot be fetched: its server answered {status}"
        if status in _NOT_THERE:
            why = "it is not there, or needs a login, which is not offered"
            return AdapterNotFoundError(f"{self.field}: {self._shown} {sentence}; {why}.", self.field)
        is_later = status in _LATER or status >= 500
        return self.unavailable(sentence) if is_later else self.refused(sentence)

    def failed(self, error: TimeoutError | ClientError | OSError) -> MidstepError:
        """The error for a connection that failed."""
        sentence = f"cannot be fetched: {failure_reason(error, 'its server')}"
        is_private = isinstance(error, ClientConnectorError) and isinstance(
            error.os_error, PrivateAddressError
        )
        return self.refused(sentence) if is_private else self.unavailable(sentence)


class AdapterDownloads:
    """Downloads files into the folder of kept ones. `running` before anything is downloaded."""

    def __init__(self, config: AdaptersConfig, kept: FetchedAdapters) -> None:
        self._config = config
        self._kept = kept
        self._allow_private = config.allow_private_hosts
        self._session: ClientSession | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Files can be downloaded until this is left."""
        self._session = outbound_session(self._allow_private, _TIMEOUT_S)
        try:
            yield
        finally:
            await self._session.close()

    async def fetch(self, given: str, field: str) -> FetchedAdapter:
        """The file at a URL or of a hub id. Raises as AdapterSources.with_files."""
        place = _Place(given, field)
        try:
            url, name = await self._url(place)
            async with self._opened(url, place) as response:
                return await self._downloaded(response, place, name)
        except (TimeoutError, ClientError, OSError) as error:
            raise place.failed(error) from error

    def is_allowed(self, host: str) -> bool:
        host = host.lower().removesuffix(".")
        return any(host == one or host.endswith(f".{one}") for one in self._config.allowed_hosts)

    async def _downloaded(self, response: ClientResponse, place: _Place, name: str) -> FetchedAdapter:
        self._check_size(response.content_length or 0, place)
        await _on_disk(self._kept.make_room, response.content_length or 0)
        download, start = Download(self._kept.folder), b""
        await _on_disk(download.open)
        try:
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                self._check_size(download.num_bytes + len(chunk), place)
                if len(start) < LENGTH_BYTES and len(start := start + chunk) >= LENGTH_BYTES:
                    header_length(Path(name), start[:LENGTH_BYTES], MAX_HEADER_BYTES)
                await _on_disk(download.write, chunk)
            await asyncio.to_thread(read_header, download.path, MAX_HEADER_BYTES)
            return await _on_disk(self._kept.keep, place.given, name, download)
        except TensorFileError as error:
            sentence = str(error).replace(str(download.path), name).removesuffix(".")
            raise InvalidRequestError(f"{place.field}: {sentence}.", place.field) from error
        finally:
            await _on_disk(download.close)

    def _check_size(self, num_bytes: int, place: _Place) -> None:
        if num_bytes > self._config.max_bytes:
            raise place.refused(f"has more than {self._config.max_bytes} bytes (adapters.max_gib)")

    async def _url(self, place: _Place) -> tuple[str, str]:
        """Where a file is fetched, and its name without what may be secret.

        By such a name a request can name it again, but for a query.
        """
        if is_url(place.given):
            url = check_url(place.given, place.field, self._allow_private)
            page = _HUB_PAGE.fullmatch(url.path.lstrip("/")) if str(url.origin()) == _HUB else None
            if page is None:
                return place.given, f"{url.authority}{url.raw_path}"
            repository, revision, file = page.groups()
        else:
            owner, model, *rest = place.given.split("/", 2)
            repository, revision, file = f"{owner}/{model}", None, rest[0] if rest else None
        if file is None:
            file = await self._only_file(repository, place)
        path = URL.build(path=f"/{repository}/resolve/{revision or 'main'}/{file}").raw_path
        of_hub = f"{repository}/{file}"
        name = of_hub if revision in (None, "main") else f"{URL(_HUB).authority}{path}"
        if not name.isprintable():
            raise place.refused("has a name with control characters")
        return f"{_HUB}{path}", name

    async def _only_file(self, repository: str, place: _Place) -> str:
        """The name of a repository's file that is the adapter."""
        async with self._opened(f"{_HUB}/api/models/{repository}", place) as response:
            data = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                data += chunk
                if len(data) > _MAX_LIST_BYTES:
                    raise place.refused("has too many files; name one of them")
        try:
            listed: Any = json.loads(data)
            names = [str(file["rfilename"]) for file in listed["siblings"]]
        except (ValueError, KeyError, TypeError) as error:
            raise place.unavailable("cannot be fetched: the hub does not list its files") from error
        files = [name for name in names if name.endswith(".safetensors")]
        usual = [name for name in _USUAL_FILES if name in files]
        if len(files) == 1 or usual:
            return (usual or files)[0]
        if not files:
            raise place.refused("has no .safetensors file, and pickles are not taken")
        more = f" and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else ""
        raise place.refused(
            f"has {len(files)} files; name one of them as {repository}/{files[0]}: "
            f"{', '.join(files[:_MOST_NAMED])}{more}"
        )

    @asynccontextmanager
    async def _opened(self, given: str, place: _Place) -> AsyncIterator[ClientResponse]:
        """The answer of an allowed host, also after redirects to allowed hosts."""
        assert self._session is not None, "fetching runs while the application does"
        url = check_url(given, place.field, self._allow_private)
        for _ in range(_MAX_REDIRECTS + 1):
            self._check_host(url, place.field)
            headers = {"accept-encoding": "identity"}
            async with self._session.get(url, allow_redirects=False, headers=headers) as response:
                if response.status == 200:
                    yield response
                    return
                location = response.headers.get("location")
                if response.status not in _REDIRECTS or location is None:
                    raise place.answered(response.status)
                target = str(url.join(URL(location, encoded=True)))
                url = check_url(target, place.field, self._allow_private)
        raise place.refused(f"is redirected more than {_MAX_REDIRECTS} times")

    def _check_host(self, url: URL, field: str) -> None:
        """Raises ForbiddenError."""
        if url.scheme != "https" and not self._allow_private:
            raise ForbiddenError(f"{field}: adapters are fetched by https only.", field)
        if not self.is_allowed(url.host or ""):
            raise ForbiddenError(
                f"{field}: adapters are not fetched from {shown(url.host)}; allowed are "
                f"{', '.join(self._config.allowed_hosts)} (adapters.allowed_hosts).",
                field,
            )


def without_query(place: str) -> str:
    """A URL or a hub id in a sentence: a query may be secret."""
    place = re.split("[?#]", place, maxsplit=1)[0]
    return place if len(place) <= _LONGEST_PLACE else f"{place[:_LONGEST_PLACE]}..."


async def _on_disk(act: Callable[..., Result], *given: Any) -> Result:
    """What the call gives, in a thread. Raises StorageFullError if the disk does not take it."""
    try:
        return await asyncio.to_thread(act, *given)
    except OSError as error:
        raise StorageFullError(f"The server cannot keep the adapter: {error.strerror}.") from error
