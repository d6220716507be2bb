"""The object store keeps its promises both in a local folder and in a bucket."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from serve.errors import ObjectNotFoundError, ObjectStoreUnavailableError
from serve.jobs.objects import ANSWERS_FOLDER, ObjectStore, answer_key, image_key, is_image_key
from tests.buckets import Bucket, s3_bucket

DATA = bytes(range(256)) * 4


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with s3_bucket() as one:
        yield one


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return ObjectStore(str(tmp_path / "data" / "objects"))
    bucket = request.getfixturevalue("bucket")
    return ObjectStore(f"{bucket.url}/{tmp_path.name}", bucket.options)


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_was_put_is_there(store: ObjectStore) -> None:
    async def main() -> None:
        key = image_key("job", 0, "image/webp")
        await store.put(key, DATA, "image/webp")
        stored = await store.get(key)
        assert (stored.key, stored.size_bytes, stored.media_type) == (key, len(DATA), "image/webp")
        assert stored.etag.startswith('"')
        assert stored.etag.endswith('"')
        assert abs((datetime.now(UTC) - stored.last_modified).total_seconds()) < 3600
        assert await store.read(key) == DATA
        assert b"".join([part async for part in await store.stream(key)]) == DATA

    asyncio.run(main())


def test_what_a_canceled_caller_was_storing_is_there_when_it_goes_on(store: ObjectStore) -> None:
    """So it can delete that. What came later would stay."""

    async def main() -> None:
        storing = asyncio.create_task(store.put("checkpoints/job/0", DATA))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # it has begun
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        assert await store.read("checkpoints/job/0") == DATA

    asyncio.run(main())


def test_a_large_object_comes_in_parts(store: ObjectStore) -> None:
    async def main() -> None:
        large = os.urandom(1_000_000)
        await store.put("checkpoints/job/0", large)
        parts = [part async for part in await store.stream("checkpoints/job/0")]
        assert b"".join(parts) == large
        assert len(parts) > 1

    asyncio.run(main())


def test_the_last_one_put_is_there_whole(store: ObjectStore) -> None:
    async def main() -> None:
        versions = [bytes([number]) * 100_000 for number in range(8)]
        await asyncio.gather(*(store.put("checkpoints/job/0", version) for version in versions))
        assert await store.read("checkpoints/job/0") in versions
        await store.put("checkpoints/job/0", b"")
        assert await store.read("checkpoints/job/0") == b""

    asyncio.run(main())


def test_what_is_not_there_is_said_so(store: ObjectStore) -> None:
    async def main() -> None:
        with pytest.raises(ObjectNotFoundError, match="checkpoints/job/1"):
            await store.get("checkpoints/job/1")
        with pytest.raises(ObjectNotFoundError):
            await store.read("checkpoints/job/1")
        with pytest.raises(ObjectNotFoundError):
            await store.stream("checkpoints/job/1")

    asyncio.run(main())


def test_deleted_is_deleted(store: ObjectStore) -> None:
    async def main() -> None:
        keys = [f"images/job/{index}" for index in range(3)]
        for key in keys:
            await store.put(key, DATA)
        await store.put("images/job2/0", DATA)
        await store.delete_folder("images/other")  # deleting a missing folder is no error
        await store.delete_folder("images/job")
        for key in keys:
            with pytest.raises(ObjectNotFoundError):
                await store.get(key)
        assert await store.read("images/job2/0") == DATA

    asyncio.run(main())


def test_a_folder_is_deleted_with_what_nobody_wrote_down(store: ObjectStore) -> None:
    async def main() -> None:
        for key in ("images/job/0", "images/job/1", "images/job2/0"):
            await store.put(key, DATA)
        await store.delete_folder("images/job")
        await store.delete_folder("images/job")
        for key in ("images/job/0", "images/job/1"):
            with pytest.raises(ObjectNotFoundError):
                await store.get(key)
        assert await store.read("images/job2/0") == DATA

    asyncio.run(main())


def test_what_is_older_is_deleted_from_its_folder_only(store: ObjectStore) -> None:
    async def main() -> None:
        await store.delete_older(ANSWERS_FOLDER, 0)
        keys = [answer_key("image/png") for _ in range(3)]
        for key in [*keys, "images/job/0"]:
            await store.put(key, DATA, "image/png", is_durable=False)
        await store.delete_older(ANSWERS_FOLDER, 3600)
        assert [await store.read(key) for key in keys] == 3 * [DATA]
        await asyncio.sleep(1.1)  # S3 reports whole seconds
        await store.delete_older(ANSWERS_FOLDER, 0.01)
        for key in keys:
            with pytest.raises(ObjectNotFoundError):
                await store.get(key)
        assert await store.read("images/job/0") == DATA

    asyncio.run(main())


def test_what_a_writer_that_died_has_left_is_deleted_as_well(tmp_path: Path) -> None:
    part = tmp_path / "answers" / ".x.png.0a0a"
    part.parent.mkdir()
    part.write_bytes(DATA)
    os.utime(part, (1e9, 1e9))
    asyncio.run(ObjectStore(str(tmp_path)).delete_older(ANSWERS_FOLDER, 3600))
    assert files_under(tmp_path) == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", ".a", "a/.b", "a\0", "ä", "a b"]
)
def test_no_key_leads_elsewhere(store: ObjectStore, key: str) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="not an object key"):
            await store.put(key, DATA)
        with pytest.raises(ValueError, match="not an object key"):
            await store.get(key)
        with pytest.raises(ValueError, match="not an object key"):
            await store.read(key)
        with pytest.raises(ValueError, match="not an object key"):
            await store.delete_folder(key)
        with pytest.raises(ValueError, match="not an object key"):
            await store.presigned_url(key, 60)

    asyncio.run(main())


def test_a_presigned_url_gives_the_object(bucket: Bucket) -> None:
    async def main() -> None:
        store = ObjectStore(f"{bucket.url}/presigned", bucket.options)
        key = image_key("job", 0, "image/png")
        await store.put(key, DATA, "image/png")
        url = await store.presigned_url(key, 60)
        assert url is not None
        assert "X-Amz-Expires=60" in url
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(url)
        assert answer.content == DATA
        assert answer.headers["content-type"] == "image/png"
        assert "immutable" in answer.headers["cache-control"]

    asyncio.run(main())


def test_a_folder_has_no_presigned_urls(tmp_path: Path) -> None:
    assert asyncio.run(ObjectStore(str(tmp_path)).presigned_url("images/job/0", 60)) is None


def test_a_folder_is_named_by_path_or_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asyncio.run(ObjectStore("a folder").put("key", DATA))
    url = (tmp_path / "a folder").as_uri()
    assert "%20" in url
    assert asyncio.run(ObjectStore(url).read("key")) == DATA
    assert files_under(tmp_path) == [tmp_path / "a folder" / "key"]


def test_nothing_is_left_of_deleted_jobs(tmp_path: Path) -> None:
    async def main() -> None:
        store = ObjectStore(str(tmp_path))
        await store.put("images/job/0", DATA)
        await store.put("checkpoints/job/0", DATA)
        await store.delete_folder("images/job")
        await store.delete_folder("checkpoints/job")

    asyncio.run(main())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "images"]


FULL_DISK = """
import asyncio, resource, sys
from serve.errors import StorageFullError
from serve.jobs.objects import ObjectStore

store = ObjectStore(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    asyncio.run(store.put("images/job/0", bytes(2000)))
except StorageFullError as error:
    print(error.detail)
asyncio.run(store.put("images/job/1", bytes(500)))
"""


def test_where_there_is_no_room_nothing_is_left_and_it_goes_on_after(tmp_path: Path) -> None:
    """A separate process may not let its files grow, which acts like a full disk."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "no room left" in said.stdout
    assert files_under(tmp_path) == [tmp_path / "images" / "job" / "1"]


def test_a_folder_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    (tmp_path / "images").write_text("a file where a folder should be")
    with pytest.raises(ObjectStoreUnavailableError) as caught:
        asyncio.run(store.put("images/job/0", DATA))
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


def test_a_bucket_that_is_away_is_reported() -> None:
    credentials = {"access_key_id": "a", "secret_access_key": "b", "region": "us-east-1"}
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can bind it
        options = {"endpoint": f"http://127.0.0.1:{bound.getsockname()[1]}", **credentials}
        store = ObjectStore("s3://pictures", options)
        with pytest.raises(ObjectStoreUnavailableError) as caught:
            asyncio.run(store.read("images/job/0"))
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


def test_a_bucket_that_does_not_exist_is_reported(bucket: Bucket) -> None:
    with pytest.raises(ObjectStoreUnavailableError, match="no such bucket"):
        asyncio.run(ObjectStore("s3://elsewhere", bucket.options).put("images/job/0", DATA))


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("ftp://host/folder", {}, "neither a folder nor"),
        ("s3://", {}, "cannot be used"),
        ("s3://bucket", {"regoin": "x"}, "regoin"),
        ("s3://bucket", {"allow_http": "perhaps"}, "perhaps"),
        ("az://container", {}, "[Aa]ccount"),
        ("file://data/objects", {}, "three slashes"),
        ("data", {"region": "x"}, "no options: region"),
    ],
)
def test_a_store_that_cannot_be_is_refused(url: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ObjectStore(url, options)


def test_keys_of_images_cannot_be_guessed() -> None:
    keys = {image_key("job", 3, "image/jpeg") for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("images/job/3-") and key.endswith(".jpg") for key in keys)
    assert all(is_image_key(key) for key in keys)
    assert all(len(key) >= len("images/job/3-.jpg") + 22 for key in keys)


@pytest.mark.parametrize(
    "key",
    ["", "images", "images/job", "images/job/0.png", "images/../checkpoints/job/0", "checkpoints/job/0"],
)
def test_other_keys_are_not_of_images(key: str) -> None:
    assert not is_image_key(key)
