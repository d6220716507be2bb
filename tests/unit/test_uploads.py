"""Files in the object store with rows in the job database: complete, private, and gone in time."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from serve.errors import ObjectNotFoundError, ObjectStoreUnavailableError, StorageFullError
from serve.jobs.objects import ObjectStore
from serve.jobs.store import JobStore
from serve.jobs.tables import files
from serve.jobs.uploads import LIFETIME_S, NewFile, Uploads
from tests.job_stores import in_loop, opened

DATA = bytes(range(256)) * 300


def new_file(name: str = "star.png", owner: str = "alice", **changes: Any) -> NewFile:
    fields: dict[str, Any] = {"content_type": "image/png", "metadata": {"a": [1, "\x00"]}, "data": DATA}
    return NewFile(owner, name, **(fields | changes))


def kept(folder: Path) -> list[Path]:
    """All files in an object store."""
    return [path for path in folder.rglob("*") if path.name != "uploads"]


async def let_pass(store: JobStore, seconds: float) -> None:
    async with store.database.write() as connection:
        await connection.execute(update(files).values(expires_at=files.c.expires_at - seconds))


async def num_rows(store: JobStore) -> int:
    async with store.database.read() as connection:
        return (await connection.execute(select(func.count()).select_from(files))).scalar_one()


@in_loop
async def test_a_file_is_its_owners_until_it_is_deleted(url: str, tmp_path: Path) -> None:
    objects = ObjectStore(str(tmp_path / "objects"))
    async with opened(url) as store:
        uploads = Uploads(store.database, objects)
        file = await uploads.keep(new_file())
        assert (file.name, file.content_type, file.size_bytes) == ("star.png", "image/png", len(DATA))
        assert file.sha256 == hashlib.sha256(DATA).hexdigest()
        assert file.metadata == {"a": [1, "\x00"]}
        assert file.expires_at - file.created_at == pytest.approx(LIFETIME_S)
        assert await objects.read(file.key) == DATA
        assert await uploads.get(file.id, "alice") == file
        assert await uploads.signed(file.id, file.signature) == file
        for signature in ("", "é", file.signature[:-1]):
            assert await uploads.signed(file.id, signature) is None
        for owner in ("bob", ""):
            assert await uploads.get(file.id, owner) is None
            assert (await uploads.page(10, None, owner)).items == ()
            assert not await uploads.delete(file.id, owner)
        assert await uploads.delete(file.id, "alice")
        assert not await uploads.delete(file.id, "alice")
        assert await uploads.get(file.id, "alice") is None
        assert await uploads.signed(file.id, file.signature) is None
        await uploads.remove_expired()
        assert kept(tmp_path / "objects") == []
        assert await num_rows(store) == 0


@in_loop
async def test_pages_of_files(url: str, tmp_path: Path) -> None:
    async with opened(url) as store:
        uploads = Uploads(store.database, ObjectStore(str(tmp_path / "objects")))
        for name in "abcd":
            await uploads.keep(new_file(name))
            await uploads.keep(new_file(name, owner="bob"))
        await uploads.delete((await uploads.page(1, None, "alice")).items[0].id, "alice")
        newest = await uploads.page(2, None, "alice")
        oldest = await uploads.page(2, newest.next, "alice")
        assert [[file.name for file in page.items] for page in (newest, oldest)] == [["c", "b"], ["a"]]
        assert (newest.previous, oldest.next) == (None, None)


@in_loop
async def test_files_go_when_their_time_is_over_and_others_stay(url: str, tmp_path: Path) -> None:
    objects = ObjectStore(str(tmp_path / "objects"))
    async with opened(url) as store:
        uploads = Uploads(store.database, objects)
        old = await uploads.keep(new_file("old"))
        await let_pass(store, LIFETIME_S)
        young = await uploads.keep(new_file("young"))
        assert await uploads.get(old.id, "alice") is None
        assert [file.name for file in (await uploads.page(9, None, "alice")).items] == ["young"]
        await uploads.remove_expired()
        with pytest.raises(ObjectNotFoundError):
            await objects.read(old.key)
        assert await objects.read(young.key) == DATA
        assert await num_rows(store) == 1


class Failing(ObjectStore):
    """Fails after its work, as if the process died there."""

    async def put(self, key: str, data: bytes, media_type: str = "") -> None:
        await super().put(key, data, media_type)
        raise StorageFullError("There is no room.")


@in_loop
async def test_what_is_left_of_an_upload_is_not_there_and_goes(url: str, tmp_path: Path) -> None:
    async with opened(url) as store:
        uploads = Uploads(store.database, Failing(str(tmp_path / "objects")))
        with pytest.raises(StorageFullError):
            await uploads.keep(new_file())
        assert kept(tmp_path / "objects"), "its bytes were written"
        assert (await uploads.page(9, None, "alice")).items == ()
        await uploads.remove_expired()
        [written] = (tmp_path / "objects").rglob("content")
        written.with_name(".content.5d41").touch()  # as of a process that is killed while it writes
        assert kept(tmp_path / "objects"), "it could still come to its end"
        await let_pass(store, LIFETIME_S)
        await uploads.remove_expired()
        assert kept(tmp_path / "objects") == []
        assert await num_rows(store) == 0


class Away(ObjectStore):
    async def delete_folder(self, folder: str) -> None:
        raise ObjectStoreUnavailableError("It is away.")


@in_loop
async def test_rows_are_kept_for_as_long_as_their_bytes(url: str, tmp_path: Path) -> None:
    async with opened(url) as store:
        uploads = Uploads(store.database, Away(str(tmp_path / "objects")))
        file = await uploads.keep(new_file())
        assert await uploads.delete(file.id, "alice")
        with pytest.raises(ObjectStoreUnavailableError):
            await uploads.remove_expired()
        assert await num_rows(store) == 1
        await Uploads(store.database, ObjectStore(str(tmp_path / "objects"))).remove_expired()
        assert kept(tmp_path / "objects") == []
        assert await num_rows(store) == 0


class Slow(ObjectStore):
    """Gives a file up before it is stored."""

    def __init__(self, url: str, store: JobStore) -> None:
        super().__init__(url)
        self._store = store

    async def put(self, key: str, data: bytes, media_type: str = "") -> None:
        await let_pass(self._store, LIFETIME_S)
        await Uploads(self._store.database, ObjectStore(str(self._folder))).remove_expired()
        await super().put(key, data, media_type)


@in_loop
async def test_an_upload_that_was_given_up_leaves_nothing(url: str, tmp_path: Path) -> None:
    async with opened(url) as store:
        uploads = Uploads(store.database, Slow(str(tmp_path / "objects"), store))
        with pytest.raises(ObjectStoreUnavailableError, match="too long"):
            await uploads.keep(new_file())
        assert kept(tmp_path / "objects") == []
        assert await num_rows(store) == 0


@in_loop
async def test_who_leaves_in_the_middle_has_a_file_or_none(url: str, tmp_path: Path) -> None:
    async with opened(url) as store:
        uploads = Uploads(store.database, ObjectStore(str(tmp_path / "objects")))
        for number in range(20):
            task = asyncio.create_task(uploads.keep(new_file()))
            await asyncio.sleep(0.001 * number)
            task.cancel()
            await asyncio.wait([task])
    async with opened(url) as store:
        uploads = Uploads(store.database, ObjectStore(str(tmp_path / "objects")))
        there = (await uploads.page(100, None, "alice")).items
        assert len(there) == await num_rows(store), "each came to its end or was not begun"
        assert len([path for path in kept(tmp_path / "objects") if path.is_file()]) == len(there)
