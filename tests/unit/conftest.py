"""The databases for tests of the job store, and the store's log."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.job_stores import History, recorded


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/data/jobs.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def history() -> Iterator[History]:
    with recorded() as history:
        yield history
