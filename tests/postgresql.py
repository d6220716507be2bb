"""A PostgreSQL server for tests, and a connection to it that can be closed."""

import os
from pathlib import Path

import asyncpg
from sqlalchemy import make_url

_SOCKET = ".s.PGSQL.5432"


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def empty(url: str) -> None:
    await execute(url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")


async def disconnect_all(url: str) -> None:
    """Ends all connections except this one."""
    await execute(
        url,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


class Way:
    """A relay to the server at a URL. url: the same server, reachable while the relay is open"""

    def __init__(self, server_url: str, folder: Path) -> None:
        server = make_url(server_url)
        self._server_url = server_url
        self._open, self._closed = folder / _SOCKET, folder / "closed"
        self._open.symlink_to(Path(str(server.query["host"])) / _SOCKET)
        self.url = server.update_query_dict({"host": str(folder)}).render_as_string(hide_password=False)

    async def close(self) -> None:
        os.rename(self._open, self._closed)
        await disconnect_all(self._server_url)

    def open(self) -> None:
        os.rename(self._closed, self._open)
