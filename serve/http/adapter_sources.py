"""Adapters that requests name elsewhere: by hub ids and by URLs of the allowed hosts."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import ClientError, ClientResponse, ClientSession
from yarl import URL

from deployments.ingestion.headers import read_header
from deployments.ingestion.model_entry import IngestionError
from serve.adapters import Adapters
from serve.errors import ForbiddenError, StorageFullError
from serve.http.fetched_adapters import Download, FetchedAdapters
from serve.outbound import Places, check_url, failure_reason, outbound_session
from serve.wanted import FetchedAdapter, Wanted, WantedAdapter, shown

logger = logging.getLogger("ray.serve")

_TIMEOUT_S = 300.0
_FETCHED_AT_ONCE, _WAIT_S = 4, 30.0
_MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_CHUNK_BYTES = 1 << 20
_HUB = "https://huggingface.co"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?:/[^?#]+\.safetensors)?")
_HUB_PAGE = re.compile(r"([\w.-]+/[\w.-]+)(?:/(?:blob|resolve)/([^/]+)/(.+))?/?")
# The names of a repository's only adapter, as diffusers and PEFT give them.
_USUAL_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_MAX_LIST_BYTES = 4 << 20
_MOST_NAMED = 5
Result = TypeVar("Result")


class AdapterSources:
    """Fetches adapters, and keeps them. allow_private: as for webhooks, for addresses that are not public

    `running` before anything is fetched.
    """

    def __init__(self, adapters: Adapters, allow_private: bool) -> None:
        self._adapters = adapters
        self._config = adapters.config
        self._kept = FetchedAdapters(Path(self._config.cache_folder or ""), self._config.cache_bytes)
        self._allow_private = allow_private
        self._places = Places(_FETCHED_AT_ONCE, _WAIT_S, "adapters")
        self._fetching: dict[tuple[str, str], asyncio.Task[FetchedAdapter]] = {}
        self._session: ClientSession | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Adapters can be fetched until this is left."""
        self._session = outbound_session(self._allow_private, _TIMEOUT_S)
        try:
            yield
        finally:
            for task in list(self._fetching.values()):
                task.cancel()
            await asyncio.gather(*self._fetching.values(), return_exceptions=True)
            await self._session.close()

    async def with_files(self, wanted: Wanted) -> Wanted:
        """The request with the files of its adapters that are elsewhere. It fetches those that are not kept.

        Raises InvalidRequestError, ForbiddenError for a host that is not allowed, QueueFullError and
        StorageFullError.
        """
        if not wanted.loras or len(wanted.loras) > self._config.max_per_request:  # it is refused later
            return wanted
        return replace(wanted, loras=tuple([await self._with_file(one) for one in wanted.loras]))

    async def _with_file(self, one: WantedAdapter) -> WantedAdapter:
        if (place := await self._place(one)) is None:
            return one
        return replace(one, fetched=await self.fetch(place, one.field))

    async def _place(self, one: WantedAdapter) -> str | None:
        """The URL or the hub id of an adapter; None if it is meant to be in the folder."""
        is_url = one.name.startswith(("https://", "http://"))
        if is_url and not self._config.allow_remote:
            raise ForbiddenError(
                f"{one.field}: {shown(one.name)} was given, and adapters are not fetched from elsewhere here "
                "(adapters.allow_remote in the server's configuration).",
                one.field,
            )
        if is_url or not self._config.allow_remote:
            return one.name if is_url else None
        host = one.name.partition("/")[0]
        is_elsewhere = "/" in one.name and (self._is_allowed(host) or _HUB_ID.fullmatch(one.name) is not None)
        if not is_elsewhere or (await asyncio.to_thread(lambda: self._adapters.listing)).named(one.name):
            return None
        return f"https://{one.name}" if self._is_allowed(host) else one.name

    async def fetch(self, place: str, field: str) -> FetchedAdapter:
        """An adapter's file, which is kept for the next time. place: a URL or a hub id

        If its caller leaves, it is fetched all the same. Raises what `with_files` raises.
        """
        if (kept := await asyncio.to_thread(self._kept.find, place)) is not None and kept.is_fresh:
            return kept.file
        key = place, field
        if (task := self._fetching.get(key)) is None:
            task = self._fetching[key] = asyncio.create_task(self._fetch(place, field))
            task.add_done_callback(lambda _: self._fetching.pop(key))
        try:
            return await asyncio.shield(task)
        except (TimeoutError, ClientError, OSError) as error:
            if kept is not None:
                logger.warning("%s cannot be fetched again: %r; it is used as it was", kept.file.name, error)
                return kept.file
            why = failure_reason(error, "the server at this URL")
            raise WantedAdapter(place, 1.0, field).refusal(f"cannot be fetched: {why}") from error

    async def _fetch(self, place: str, field: str) -> FetchedAdapter:
        async with self._places.taken():
            url, name = await self._url(place, field)
            one = WantedAdapter(name, 1.0, field)
            async with self._opened(url, field) as response:
                with Download(self._kept.folder) as download:
                    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                        if download.num_bytes + len(chunk) > self._config.max_bytes:
                            most = f"{self._config.max_bytes} bytes (adapters.max_gib)"
                            raise one.refusal(f"has more than {most}")
                        await _on_disk(download.write, chunk)
                    try:
                        await asyncio.to_thread(read_header, download.path)
                    except IngestionError as error:
                        raise one.refusal(str(error).replace(str(download.path), name)) from error
                    return await _on_disk(self._kept.keep, place, name, download)

    async def _url(self, place: str, field: str) -> tuple[str, str]:
        """Where a file is fetched, and its name without what may be secret."""
        if place.startswith(("https://", "http://")):
            url = check_url(place, field, self._allow_private)
            if str(url.origin()) != _HUB:
                return place, f"{url.host}{url.path}"
            if (page := _HUB_PAGE.fullmatch(url.path.lstrip("/"))) is None:
                return place, f"{url.host}{url.path}"
            repository, revision, file = page.groups()
        else:
            owner, model, *rest = place.split("/", 2)
            repository, revision, file = f"{owner}/{model}", None, rest[0] if rest else None
        if file is None:
            file = await self._only_file(repository, field)
        path = URL.build(path=f"/{repository}/resolve/{revision or 'main'}/{file}").raw_path
        return f"{_HUB}{path}", f"{repository}/{file}"

    async def _only_file(self, repository: str, field: str) -> str:
        """The name of a repository's file that is the adapter."""
        one = WantedAdapter(repository, 1.0, field)
        async with self._opened(f"{_HUB}/api/models/{repository}", field) as response:
            data = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                data += chunk
                if len(data) > _MAX_LIST_BYTES:
                    raise one.refusal("the hub's list of its files is too long; name one of them")
        try:
            listed: Any = json.loads(data)
            names = [str(file["rfilename"]) for file in listed["siblings"]]
        except (ValueError, KeyError, TypeError) as error:
            raise one.refusal("the hub did not answer with a list of its files") from error
        files = [name for name in names if name.endswith(".safetensors")]
        usual = [name for name in _USUAL_FILES if name in files]
        if len(files) == 1 or usual:
            return (usual or files)[0]
        if not files:
            raise one.refusal(f"{repository} has no .safetensors file, and pickles are not taken")
        more = f" and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else ""
        raise one.refusal(
            f"{repository} has {len(files)} files; name one of them as {repository}/{files[0]}: "
            f"{', '.join(files[:_MOST_NAMED])}{more}"
        )

    @asynccontextmanager
    async def _opened(self, given: str, field: str) -> AsyncIterator[ClientResponse]:
        """The answer of an allowed host, also after redirects to allowed hosts."""
        assert self._session is not None, "fetching runs while the application does"
        url = check_url(given, field, self._allow_private)
        for _ in range(_MAX_REDIRECTS + 1):
            self._check_host(url, field)
            headers = {"accept-encoding": "identity"}
            async with self._session.get(url, allow_redirects=False, headers=headers) as response:
                if response.status == 200:
                    yield response
                    return
                location = response.headers.get("location")
                if response.status not in _REDIRECTS or location is None:
                    raise WantedAdapter(given, 1.0, field).refusal(_answered(response.status))
                url = check_url(str(url.join(URL(location, encoded=True))), field, self._allow_private)
        raise WantedAdapter(given, 1.0, field).refusal(f"is redirected more than {_MAX_REDIRECTS} times")

    def _check_host(self, url: URL, field: str) -> None:
        """Raises ForbiddenError."""
        if url.scheme != "https" and not self._allow_private:
            raise ForbiddenError(f"{field}: adapters are fetched by https only.", field)
        if not self._is_allowed(url.host or ""):
            raise ForbiddenError(
                f"{field}: adapters are not fetched from {shown(url.host)}; allowed are "
                f"{', '.join(self._config.allowed_hosts)} (adapters.allowed_hosts).",
                field,
            )

    def _is_allowed(self, host: str) -> bool:
        host = host.lower().removesuffix(".")
        return any(host == one or host.endswith(f".{one}") for one in self._config.allowed_hosts)


async def _on_disk(act: Callable[..., Result], *given: Any) -> Result:
    """What the call gives, in a thread. Raises StorageFullError if the disk does not take it."""
    try:
        return await asyncio.to_thread(act, *given)
    except OSError as error:
        raise StorageFullError(f"The server cannot keep the adapter: {error.strerror}.") from error


def _answered(status: int) -> str:
    login = "; it is not there, or needs a login, which is not offered" if status in (401, 403) else ""
    return f"the server at this URL answered {status}{login}"
