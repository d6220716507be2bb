"""The database of the job store: its connections, its transactions, and the meaning of its errors."""

import asyncio
import functools
import inspect
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Table, event, func, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from serve.errors import JobStoreUnavailableError, MidstepError, StorageFullError
from serve.private_files import make_missing_folders, make_private_file, make_private_if_there

logger = logging.getLogger("ray.serve")

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Owner = TypeVar("Owner", bound="OnDatabase")

MIGRATIONS_FOLDER = Path(__file__).parent / "migrations"
# How long a write waits for writes of other processes, unless the URL says `?timeout=`.
SQLITE_TIMEOUT_S = 5
# SQLite does not wake waiting writers. A waiting writer looks again after this time, and a writer that is
# done leaves that much time to others. SQLite's own wait looks less and less often, so a process that writes
# often would lock the others out.
SQLITE_LOOK_S = 0.004
# Seconds for the server to answer at all, and to answer a statement.
POSTGRESQL_TIMEOUTS_S = {"timeout": 5, "command_timeout": 30}
# Allowed in a PostgreSQL URL besides asyncpg's own arguments.
_SQLALCHEMYS_OWN = ("prepared_statement_cache_size", "prepared_statement_name_func")
# Pauses at opening, for a database that is locked or still starting.
OPENING_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
# The holder of this PostgreSQL advisory lock migrates; "midstep" in ASCII.
MIGRATION_LOCK = int.from_bytes(b"midstep")


def parse_database_url(url: str) -> URL:
    """The URL with its asyncio driver. Raises ValueError if it is neither SQLite in a file nor PostgreSQL."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError(f"{url!r} is not the URL of a database.") from error
    match parsed.get_backend_name():
        case "sqlite" if parsed.database not in (None, "", ":memory:"):
            with_timeout = {"timeout": str(SQLITE_TIMEOUT_S)} | dict(parsed.query)
            return parsed.set(drivername="sqlite+aiosqlite", query=with_timeout)
        case "postgresql" | "postgres":
            return parsed.set(drivername="postgresql+asyncpg", query=_for_asyncpg(parsed.query))
    shown = parsed.render_as_string(hide_password=True)
    raise ValueError(f"Jobs go to sqlite:///<file> or postgresql://..., not to {shown!r}.")


def _for_asyncpg(query: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError for options that only libpq knows, which asyncpg would refuse only at connecting."""
    renamed = {"ssl" if key == "sslmode" else key: value for key, value in query.items()}
    known = {*inspect.signature(asyncpg.connect).parameters, *_SQLALCHEMYS_OWN} - {"dsn", "loop"}
    if unknown := sorted(renamed.keys() - known):
        raise ValueError(
            f"{unknown[0]!r} is not an option of asyncpg, which connects to PostgreSQL here. For TLS use "
            "`?sslmode=require`, or `verify-full` to check the server's certificate."
        )
    return renamed


class Database:
    """Transactions on SQLite or PostgreSQL.

    Faults of the database itself are raised as JobStoreUnavailableError or StorageFullError. Nothing of the
    transaction is written then, unless the connection was lost in the moment of the commit. Both faults pass
    without a restart.
    """

    def __init__(self, url: str) -> None:
        self._url = parse_database_url(url)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        self.sqlite_file = Path(str(self._url.database)) if self._is_sqlite else None
        if self._is_sqlite:
            timeout_s = float(str(self._url.query["timeout"]))
            self.reader = create_async_engine(self._url)
            self.writer = create_async_engine(self._url, connect_args={"timeout": SQLITE_LOOK_S})
            for engine in (self.reader, self.writer):
                event.listen(engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self.writer.sync_engine, "begin", functools.partial(_begin_on_sqlite, timeout_s))
        else:
            self.reader = self.writer = create_async_engine(
                self._url, pool_pre_ping=True, connect_args=dict(POSTGRESQL_TIMEOUTS_S)
            )
        self._under_way: set[asyncio.Task[Any]] = set()
        self._turn = _SqliteTurn() if self._is_sqlite else nullcontext()

    async def open(self) -> None:
        """Creates or migrates the tables. If several processes do so at once, only one does the work."""
        for pause_s in OPENING_PAUSES_S:
            try:
                return await self._migrate()
            except JobStoreUnavailableError:
                await asyncio.sleep(pause_s)
        await self._migrate()

    async def close(self) -> None:
        """Waits for running work and closes the connections."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        for engine in {self.reader, self.writer}:
            await engine.dispose()

    async def finish(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs work on this database to its end, even if the caller is canceled.

        A transaction cut off midway would hold SQLite's only write lock for seconds, until its connection is
        cleaned up.
        """
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_fault)  # nobody else would see its error
            raise

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for statements that change nothing."""
        with _translated_errors():
            async with self.reader.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction. When it is left without an exception, it is on disk."""
        async with self._turn:
            with _translated_errors():
                async with self.writer.begin() as connection:
                    yield connection

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An insert with ON CONFLICT, which standard SQL does not have."""
        return sqlite.insert(table) if self._is_sqlite else postgresql.insert(table)

    async def _migrate(self) -> None:
        if self.sqlite_file:
            with _translated_errors():
                _make_private(self.sqlite_file)
            async with self.read() as connection:
                await connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # kept in the file
        async with self.write() as connection:
            if not self._is_sqlite:
                await connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            await connection.run_sync(_upgrade)


class _SqliteTurn:
    """Writers of one process queue. After each of them, writers of other processes get a chance."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().call_later(SQLITE_LOOK_S, self._lock.release)


class OnDatabase(Protocol):
    @property
    def database(self) -> Database: ...


def uninterrupted(
    method: Callable[Concatenate[Owner, Parameters], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[Owner, Parameters], Coroutine[Any, Any, Result]]:
    """A method that runs to its end even if its caller is canceled, as when a client leaves."""

    @functools.wraps(method)
    async def run(owner: Owner, /, *arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        return await owner.database.finish(method(owner, *arguments, **named))

    return run


def _log_fault(work: asyncio.Task[Any]) -> None:
    """Logs the error of work whose caller has left. MidstepErrors were meant for the caller only."""
    error = None if work.cancelled() else work.exception()
    if error is not None and not isinstance(error, MidstepError):
        logger.error("work on the job store failed after its caller had left", exc_info=error)


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _make_private(database: Path) -> None:
    """Makes SQLite's file private, because it holds prompts. SQLite gives its other files the same mode."""
    make_missing_folders(database.parent)
    make_private_file(database)
    for suffix in ("-wal", "-shm"):
        make_private_if_there(database.with_name(database.name + suffix))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # Python's driver begins no transactions; we do, below
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")  # in WAL mode, less would lose the last commits
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_on_sqlite(timeout_s: float, connection: Connection) -> None:
    """Begins as a writer. A reader that starts to write beside another writer would fail without waiting."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        except OperationalError as error:
            if _sqlite_code(error) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        translated = _translate(error)
        if translated is None:
            raise
        raise translated from error
    except (PoolTimeoutError, OSError) as error:  # from asyncpg, while it connects or waits
        raise _unavailable() from error


def _translate(error: DBAPIError) -> MidstepError | None:
    """The error to raise; None if it is a mistake of ours."""
    match error.orig:
        case sqlite3.Error():
            code = _sqlite_code(error)
            is_full = code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
            is_away = code & 0xFF in _SQLITE_AWAY
        case _:
            state = getattr(error.orig, "sqlstate", None) or ""
            is_full = state == "53100"
            is_away = state.startswith(_POSTGRESQL_AWAY)
    if is_full:
        return StorageFullError("There is no room for the job on the server's disk.")
    return _unavailable() if is_away or error.connection_invalidated else None


def _sqlite_code(error: DBAPIError) -> int:
    return getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_OK)


def _unavailable() -> JobStoreUnavailableError:
    return JobStoreUnavailableError("The job store does not answer; please try again.", retry_after_s=1)


_SQLITE_AWAY = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PROTOCOL,
    }
)
# Classes of SQLSTATE: connection, rolled back for others, resources, in use, operator (shutdown), system.
# The last code comes from a server that has become a standby.
_POSTGRESQL_AWAY = ("08", "40", "53", "55", "57", "58", "25006")
