"""News of the job store. Whoever waits for a change is woken, in other processes too.

Nothing depends on the news: a missed change is seen at the next regular look, only later. PostgreSQL sends
NOTIFY with the commit. SQLite notifies nobody, but each commit writes to its log file, and checking the
file's size and time of change takes microseconds.
"""

import asyncio
import logging
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.errors import JobStoreUnavailableError, StorageFullError
from serve.jobs.database import Database

logger = logging.getLogger("ray.serve")

# Seconds between looks at SQLite's log file, and the shortest time between two reactions to news.
_LOOK_S = 0.05
# Where nothing has changed for a while looks are further apart: they are most of what an idle process does.
_QUIET_LOOK_S = 0.2
_QUIET_AFTER_S = 5.0
_RECONNECT_S = 2.0


class Audience(StrEnum):
    """Who hears a change, by the name of PostgreSQL's channel. On SQLite everybody hears every change."""

    RUNNERS = "midstep_runners"
    CLIENTS = "midstep_clients"


class News:
    """The news of one database for the listeners of this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._listeners: dict[asyncio.Event, Audience] = {}
        self._is_heard = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="job-news")

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    @contextmanager
    def listening(self, audience: Audience, event: asyncio.Event) -> Iterator[None]:
        """Sets the event whenever there is something new. It is also set at the start."""
        event.set()
        self._listeners[event] = audience
        self._is_heard.set()
        try:
            yield
        finally:
            del self._listeners[event]
            if not self._listeners:
                self._is_heard.clear()

    async def announce(self, connection: AsyncConnection, audiences: Collection[Audience]) -> None:
        """Called in the transaction of the change."""
        if audiences and self._database.sqlite_file is None:
            await connection.execute(select(*(func.pg_notify(audience, "") for audience in audiences)))

    async def _watch(self) -> None:
        while True:
            try:
                if self._database.sqlite_file is None:
                    await self._watch_postgresql()
                else:
                    await self._watch_sqlite(self._database.sqlite_file)
            except (JobStoreUnavailableError, StorageFullError) as error:
                logger.warning("no news of jobs; looking for changes instead: %s", error.detail)
            except Exception:  # the boundary of a task that nobody waits for
                logger.exception("no news of jobs; looking for changes instead")
            await asyncio.sleep(_RECONNECT_S)

    async def _watch_sqlite(self, file: Path) -> None:
        log = file.with_name(f"{file.name}-wal")
        seen, changed_at = _state_of(log), time.monotonic()
        while True:
            await self._is_heard.wait()
            if (now := _state_of(log)) != seen:
                seen, changed_at = now, time.monotonic()
                for audience in Audience:
                    self._tell(audience)
            is_quiet = time.monotonic() - changed_at > _QUIET_AFTER_S
            await asyncio.sleep(_QUIET_LOOK_S if is_quiet else _LOOK_S)

    async def _watch_postgresql(self) -> None:
        """Returns when the connection is lost."""
        is_lost = asyncio.Event()
        async with self._database.read() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            driver.add_termination_listener(lambda _: is_lost.set())
            for audience in Audience:
                await driver.add_listener(audience, lambda _c, _p, channel, _: self._tell(Audience(channel)))
                self._tell(audience)  # changes may have been missed meanwhile
            await is_lost.wait()
            await connection.invalidate()

    def _tell(self, told: Audience) -> None:
        for event, audience in self._listeners.items():
            if audience is told:
                event.set()


async def news_or_timeout(event: asyncio.Event, timeout_s: float) -> None:
    """Returns when the event is set or the time is over, but after a short pause at least."""
    pause_s = min(_LOOK_S, timeout_s)
    await asyncio.sleep(pause_s)
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s - pause_s):
            await event.wait()
    event.clear()


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
