"""Adapters that requests name elsewhere: by hub ids and by URLs of the allowed hosts."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from serve.adapter_folder import SUFFIX
from serve.adapters import Adapters
from serve.errors import AdapterUnavailableError, ForbiddenError, MidstepError
from serve.http.adapter_downloads import RETRY_AFTER_S, AdapterDownloads, without_query
from serve.http.fetched_adapters import FetchedAdapters
from serve.outbound import Places
from serve.wanted import FetchedAdapter, Wanted, WantedAdapter, is_url, shown

logger = logging.getLogger("ray.serve")

_AT_ONCE, _AT_ONCE_PER_CLIENT, _WAIT_S = 4, 3, 30.0
# How long a request waits for a download, which goes on without it; and if it can do with an older file.
_PATIENCE_S, _PATIENCE_WITH_KEPT_S = 60.0, 10.0
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?:/[^?#]+\.safetensors)?")


class AdapterSources:
    """Fetches adapters, and keeps them. `running` before anything is fetched."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters
        self._config = adapters.config
        self._kept = FetchedAdapters(Path(self._config.cache_folder or ""), self._config.cache_bytes)
        self._downloads = AdapterDownloads(self._config, self._kept)
        self._places = Places(_AT_ONCE, _WAIT_S, "adapters")
        self._client_places: dict[str, Places] = {}
        # With the field of whoever asked first, by which the errors name it.
        self._fetching: dict[str, tuple[asyncio.Task[FetchedAdapter], str]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Adapters can be fetched until this is left."""
        if self._config.allow_remote:
            with suppress(OSError):  # whoever fetches will hear of it
                await self._adapters.on_thread(self._kept.sweep)
        async with self._downloads.running():
            try:
                yield
            finally:
                tasks = [task for task, _ in self._fetching.values()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def with_files(self, wanted: Wanted, client: str) -> Wanted:
        """The request with the files of its adapters that are elsewhere. It fetches those that are not kept.

        client: its name
        Raises InvalidRequestError, AdapterNotFoundError, AdapterUnavailableError, ForbiddenError for a host
        that is not allowed, QueueFullError and StorageFullError.
        """
        loras = await asyncio.gather(*(self._with_file(one, client) for one in wanted.loras))
        return replace(wanted, loras=tuple(loras))

    async def _with_file(self, one: WantedAdapter, client: str) -> WantedAdapter:
        if (place := await self.place(one)) is None:
            return one
        return replace(one, fetched=await self.fetch(place, one.field, client))

    async def place(self, one: WantedAdapter) -> str | None:
        """The URL or the hub id of an adapter; None if it is meant to be in the folder.

        Raises ForbiddenError.
        """
        name = one.name
        if is_url(name) and not self._config.allow_remote:
            raise ForbiddenError(
                f"{one.field}: {shown(name)} was given, and adapters are not fetched from elsewhere here "
                "(adapters.allow_remote in the server's configuration).",
                one.field,
            )
        if is_url(name):
            return name
        if not self._config.allow_remote or "/" not in name:
            return None
        if self._downloads.is_allowed(name.partition("/")[0].partition(":")[0]):
            listing = await self._adapters.on_thread(lambda: self._adapters.listing)
            return None if listing.named(name) else f"https://{name}"
        is_file = name.count("/") == 1 and name.endswith(SUFFIX)
        if is_file or _HUB_ID.fullmatch(name) is None:
            return None
        is_meant = await self._adapters.on_thread(lambda: self._adapters.listing.is_meant(name))
        return None if is_meant else name

    async def fetch(self, place: str, field: str, client: str = "") -> FetchedAdapter:
        """An adapter's file, which is kept for the next time. place: a URL or a hub id

        If its caller leaves, or it takes too long, it is fetched all the same. If it cannot be fetched again,
        the kept file is used. Raises what `with_files` raises.
        """
        kept = await self._adapters.on_thread(self._kept.find, place)
        if kept is not None and kept.is_fresh:
            return kept.file
        try:
            return await self._shared(place, field, client, _PATIENCE_WITH_KEPT_S if kept else _PATIENCE_S)
        except ForbiddenError:  # the configuration is another by now
            raise
        except MidstepError as error:
            if kept is None:
                raise
            logger.warning(
                "%s cannot be fetched again, and is used as it was: %s", kept.file.name, error.detail
            )
            await self._adapters.on_thread(self._kept.put_off, place)
            return kept.file

    async def _shared(self, place: str, field: str, client: str, patience_s: float) -> FetchedAdapter:
        """One download for all who want it."""
        if place not in self._fetching:
            task = asyncio.create_task(self._fetch(place, field, client))
            self._fetching[place] = task, field
            task.add_done_callback(partial(self._ended, place))
        task, first_field = self._fetching[place]
        done, _ = await asyncio.wait({task}, timeout=patience_s)
        if not done:
            raise AdapterUnavailableError(
                f"{field}: {without_query(place)} is still being fetched. Try again in {RETRY_AFTER_S} s.",
                field,
                RETRY_AFTER_S,
            )
        try:
            return task.result()
        except MidstepError as error:
            if error.param is None:
                raise
            sentence = error.detail.removeprefix(f"{first_field}: ")
            raise type(error)(f"{field}: {sentence}", field, error.retry_after_s) from error

    async def _fetch(self, place: str, field: str, client: str) -> FetchedAdapter:
        own = self._client_places.setdefault(client, Places(_AT_ONCE_PER_CLIENT, _WAIT_S, "adapters"))
        async with own.taken(), self._places.taken():
            return await self._downloads.fetch(place, field)

    def _ended(self, place: str, task: asyncio.Task[FetchedAdapter]) -> None:
        del self._fetching[place]
        if not task.cancelled():
            task.exception()  # it is told to those who still wait
