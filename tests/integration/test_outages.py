"""The database is locked, its disk full, its server away: refusals that say so, nothing lost, no restart."""

import asyncio
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
from tests.integration.predictions import ROUTE, begun, body, create, finished, get
from tests.postgresql import Way

LONG = {"num_inference_steps": 100, "num_outputs": 2}
SHORT = {"num_inference_steps": 4}
# In a file system of its own, which nobody outside of the process sees.
ON_A_SMALL_DISK = 'mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"'
NAMESPACE = ("unshare", "--map-root-user", "--mount")


def refused(client: httpx.Client, status: int, title: str) -> None:
    response = client.post(ROUTE, json=body(**SHORT))
    assert (response.status_code, response.json()["title"]) == (status, title), response.text


def still_makes_pictures(client: httpx.Client) -> None:
    """For those who wait for theirs: they have nothing to do with jobs."""
    given = {"prompt": "a red star", "num_inference_steps": 4}
    assert client.post("/v1/images/generations", json=given).status_code == 200


def all_succeed(client: httpx.Client, job_ids: list[str]) -> None:
    for job_id in job_ids:
        job = finished(client, job_id)
        assert job["status"] == "succeeded", job
        for url in job["output"]:
            assert client.get(httpx.URL(url).path).headers["content-type"] == "image/png"


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
            # There is some room left in what SQLite has written before.
            while (response := client.post(ROUTE, json=body(**SHORT))).status_code == 201:
                accepted.append(response.json()["id"])
            refused(client, 507, "Storage full")
            still_makes_pictures(client)
            assert get(client, accepted[0])["id"] == accepted[0]
        accepted.append(create(client, **SHORT)["id"])
        all_succeed(client, accepted)


def test_the_database_is_away(postgresql_url: str, cost_model: Path, tmp_path: Path) -> None:
    way = Way(postgresql_url, tmp_path)
    jobs = {"data_folder": str(tmp_path / "data"), "database_url": way.url}
    with whole_application(jobs, tmp_path / "log", cost_model) as application:
        client = application.client
        before = create(client, **LONG)["id"]
        begun(client, before)
        asyncio.run(way.close())
        refused(client, 503, "Job store unavailable")
        assert client.get(f"{ROUTE}/{before}").status_code == 503
        still_makes_pictures(client)
        way.open()
        all_succeed(client, [before, create(client, **SHORT)["id"]])
