"""The database is locked or its disk is full: clear refusals, nothing lost, no restart.

test_production covers an unreachable database server.
"""

import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.integration.applications import whole_application
from tests.integration.predictions import (
    ROUTE,
    SHORT,
    all_succeed,
    begun,
    body,
    create,
    get,
    refused,
    still_makes_pictures,
)

LONG = {"num_inference_steps": 100, "num_outputs": 2}
# On a separate file system that no other process sees.
ON_A_SMALL_DISK = 'mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"'
NAMESPACE = ("unshare", "--map-root-user", "--mount")


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_without_end(filler)
    yield
    filler.unlink()


def write_without_end(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_the_database_is_locked(client: httpx.Client, data_folder: Path) -> None:
    before = create(client, **LONG)["id"]
    begun(client, before)
    with closing(sqlite3.connect(data_folder / "jobs.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused(client, 503, "Job store unavailable")
        still_makes_pictures(client)
        assert get(client, before)["id"] == before
        other.execute("ROLLBACK")
    all_succeed(client, [before, create(client, **SHORT)["id"]])


def test_the_disk_is_full(cost_model: Path, tmp_path: Path) -> None:
    if not shutil.which("unshare") or subprocess.run([*NAMESPACE, "true"], check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    folder = tmp_path / "data"
    folder.mkdir()
    command = (*NAMESPACE, "sh", "-c", ON_A_SMALL_DISK, folder)
    jobs = {"data_folder": str(folder)}
    with whole_application(jobs, tmp_path / "log", cost_model, command) as application:
        client = application.client
        accepted = [create(client, **LONG)["id"]]
        begun(client, accepted[0])
        with filled(Path(f"/proc/{application.pid}/root{folder}")):
            # SQLite's existing files have some room left.
            while (response := client.post(ROUTE, json=body(**SHORT))).status_code == 201:
                accepted.append(response.json()["id"])
            refused(client, 507, "Storage full")
            still_makes_pictures(client)
            assert get(client, accepted[0])["id"] == accepted[0]
        accepted.append(create(client, **SHORT)["id"])
        all_succeed(client, accepted)
