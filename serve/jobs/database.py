"""The database under the job store: which one it is, how it is spoken to, and what its errors mean."""

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
# How long a write waits for those of other processes, unless the URL says `?timeout=`.
SQLITE_TIMEOUT_S = 5
# SQLite wakes nobody who waits to write: he looks again so soon, and whoever has written leaves time for it.
# Its own way is to look ever more seldom, so that a process that writes often would keep the others out.
SQLITE_LOOK_S = 0.004
# For a server to answer at all, and to answer a statement.
POSTGRESQL_TIMEOUTS_S = {"timeout": 5, "command_timeout": 30}
# In a URL of PostgreSQL, beside what asyncpg takes.
_SQLALCHEMYS_OWN = ("prepared_statement_cache_size", "prepared_statement_name_func")
# At opening, for a database that is locked or that is only coming up itself.
OPENING_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
# Whoever holds this advisory lock of PostgreSQL's migrates; "midstep" in ASCII.
MIGRATION_LOCK = int.from_bytes(b"midstep")


def parse_database_url(url: str) -> URL:
    """With its asyncio driver. Raises ValueError for what is neither SQLite in a file nor PostgreSQL."""
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
    """Raises ValueError for what libpq knows and asyncpg does not, which would only show when it connects."""
    renamed = {"ssl" if key == "sslmode" else key: value for key, value in query.items()}
    known = {*inspect.signature(asyncpg.connect).parameters, *_SQLALCHEMYS_OWN} - {"dsn", "loop"}
    if unknown := sorted(renamed.keys() - known):
        raise ValueError(
            f"{unknown[0]!r} is not known to asyncpg, which connects to PostgreSQL here. TLS is asked for by "
            "`?sslmode=require`, or `verify-full` to check who answers."
        )
    return renamed


class Database:
    """Transactions on SQLite or PostgreSQL.

    Whatever goes wrong with the database itself is raised as JobStoreUnavailableError or StorageFullError.
    Nothing of the transaction is written then, unless the connection was lost in the moment of the commit.
    Both pass without a restart.
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
        """Makes the tables, or brings them up to date; of several processes that do so at once, one does."""
        for pause_s in OPENING_PAUSES_S:
            try:
                return await self._migrate()
            except JobStoreUnavailableError:
                await asyncio.sleep(pause_s)
        await self._migrate()

    async def close(self) -> None:
        """Waits for what is under way."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        for engine in {self.reader, self.writer}:
            await engine.dispose()

    async def finish(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Work on this database, which goes on to its end if its caller is canceled.

        A transaction cut off midway would hold SQLite's only write lock for seconds, until its connection is
        cleared away.
        """
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_fault)  # nobody else would look
            raise

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """For one statement that changes nothing."""
        with _translated_errors():
            async with self.reader.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: when it is left without an exception, it is on disk."""
        async with self._turn:
            with _translated_errors():
                async with self.writer.begin() as connection:
                    yield connection

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """With ON CONFLICT, which SQL has no standard for."""
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
    """Within a process writers queue, and after each one those of other processes have their chance."""

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
    """A method whose caller may be canceled, as when a client leaves: see Database.finish."""

    @functools.wraps(method)
    async def run(owner: Owner, /, *arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        return await owner.database.finish(method(owner, *arguments, **named))

    return run


def _log_fault(work: asyncio.Task[Any]) -> None:
    """Of work whose caller has left. MidstepErrors were meant for him."""
    error = None if work.cancelled() else work.exception()
    if error is not None and not isinstance(error, MidstepError):
        logger.error("work on the job store failed after its caller had left", exc_info=error)


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _make_private(database: Path) -> None:
    """Makes SQLite's file, for prompts are in it; what SQLite lays beside it later gets the same mode."""
    make_missing_folders(database.parent)
    make_private_file(database)
    for suffix in ("-wal", "-shm"):
        make_private_if_there(database.with_name(database.name + suffix))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # Python's driver begins no transactions: we do, below
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")  # in WAL mode, less would lose what was committed last
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_on_sqlite(timeout_s: float, connection: Connection) -> None:
    """As a writer: one that begins as a reader and comes to write beside another does not wait, but fails."""
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
    except (PoolTimeoutError, OSError) as error:  # of asyncpg's, as it connects or waits
        raise _unavailable() from error


def _translate(error: DBAPIError) -> MidstepError | None:
    """None for what is a mistake of ours."""
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
# The last one is of a server that has become a standby.
_POSTGRESQL_AWAY = ("08", "40", "53", "55", "57", "58", "25006")
