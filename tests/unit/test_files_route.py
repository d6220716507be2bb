"""Images by URL: whole or not at all."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.serve.metrics import Counter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from serve.errors import MidstepError
from serve.http.files import FilesRoute
from serve.http.problems import on_fault, on_http_exception, on_midstep_error
from serve.jobs.objects import ObjectStore, answer_key, is_image_key
from tests.buckets import s3_bucket

DATA = bytes(range(256)) * 4000
KEY = "images/job/2-AAAAAAAAAAAAAAAAAAAAAA.png"
MISSING = "images/job/2-BBBBBBBBBBBBBBBBBBBBBB.png"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    store = ObjectStore(str(tmp_path))
    asyncio.run(store.put(KEY, DATA, "image/png"))
    asyncio.run(store.put("checkpoints/job/2", DATA))
    return store


@pytest.fixture
def client(store: ObjectStore) -> Iterator[TestClient]:
    with client_of(FilesRoute(store)) as client:
        yield client


def client_of(files: FilesRoute) -> TestClient:
    handlers: dict[Any, Any] = {
        MidstepError: on_midstep_error,
        HTTPException: on_http_exception,
        Exception: on_fault,
    }
    app = Starlette(routes=files.routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # as the whole application has it
    app.state.refused = Counter("refused", "Errors.", ("code",))
    return TestClient(app, follow_redirects=False)


def test_an_image_comes_whole(client: TestClient) -> None:
    answer = client.get(f"/v1/files/{KEY}")
    assert answer.status_code == 200
    assert answer.content == DATA
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-length"] == str(len(DATA))
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == 'inline; filename="job-2.png"'
    assert answer.headers["etag"].startswith('"')
    assert answer.headers["last-modified"].endswith(" GMT")


def test_an_image_of_an_answer_comes_too(store: ObjectStore, client: TestClient) -> None:
    key = answer_key("image/webp")
    asyncio.run(store.put(key, DATA, "image/webp", is_durable=False))
    answer = client.get(f"/v1/files/{key}")
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["content-disposition"] == f'inline; filename="{key.removeprefix("answers/")}"'


def test_head_is_the_same_without_the_image(client: TestClient) -> None:
    whole, head = client.get(f"/v1/files/{KEY}"), client.head(f"/v1/files/{KEY}")
    assert head.status_code == 200
    assert head.content == b""
    assert dict(head.headers) == dict(whole.headers)


def test_other_methods_are_not_possible(client: TestClient) -> None:
    answer = client.delete(f"/v1/files/{KEY}")
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_a_part_is_not_to_be_had_but_the_whole(client: TestClient) -> None:
    """A server may answer so (RFC 9110, section 14.2). Clients need not ask for ranges it does not offer."""
    for header in ("bytes=0-0", f"bytes={len(DATA)}-", "x"):
        answer = client.get(f"/v1/files/{KEY}", headers={"range": header})
        assert (answer.status_code, answer.content) == (200, DATA)
        assert "accept-ranges" not in answer.headers


def test_who_has_the_image_is_told_so(client: TestClient) -> None:
    etag = client.get(f"/v1/files/{KEY}").headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        for method in ("GET", "HEAD"):
            answer = client.request(method, f"/v1/files/{KEY}", headers={"if-none-match": known})
            assert answer.status_code == 304
            assert answer.content == b""
            assert answer.headers["etag"] == etag
    assert client.get(f"/v1/files/{KEY}", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        MISSING,
        "answers/AAAAAAAAAAAAAAAAAAAAAA.png",
        "answers/",
        "images/job",
        "images/job/",
        "images",
        "",
        "checkpoints/job/2",
        "images/../checkpoints/job/2",
        "images/%2e%2e/checkpoints/job/2",
        "images%2f..%2f..%2f..%2fetc%2fpasswd",
        "../../etc/passwd",
        "/etc/passwd",
        KEY.upper(),
        f"{KEY}/",
        f"/{KEY}",
        f"{KEY}%00",
        KEY.replace("/", "%5c"),
    ],
)
def test_nothing_else_is_given(client: TestClient, path: str) -> None:
    answer = client.get(f"/v1/files/{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["error"]["code"] in {"file_not_found", "route_not_found"}


def test_these_were_keys_of_images() -> None:
    assert is_image_key(KEY)
    assert is_image_key(MISSING)


def test_a_deleted_image_is_not_found(store: ObjectStore, client: TestClient) -> None:
    asyncio.run(store.delete_folder(KEY.rpartition("/")[0]))
    answer = client.get(f"/v1/files/{KEY}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "file_not_found"
    assert answer.headers["x-should-retry"] == "false"


def test_a_folder_is_served_even_where_urls_are_to_be_presigned(store: ObjectStore) -> None:
    with client_of(FilesRoute(store, presign_s=60)) as client:
        assert client.get(f"/v1/files/{KEY}").content == DATA


def test_from_a_bucket_through_us_or_by_a_presigned_url() -> None:
    with s3_bucket() as bucket:
        store = ObjectStore(bucket.url, bucket.options)
        asyncio.run(store.put(KEY, DATA, "image/png"))
        with client_of(FilesRoute(store)) as client:
            whole = client.get(f"/v1/files/{KEY}")
            assert (whole.status_code, whole.content) == (200, DATA)
            known = client.get(f"/v1/files/{KEY}", headers={"if-none-match": whole.headers["etag"]})
            assert known.status_code == 304
        with client_of(FilesRoute(store, presign_s=60)) as client:
            answer = client.get(f"/v1/files/{KEY}")
            assert (answer.status_code, answer.headers["cache-control"]) == (302, "no-store")
            assert httpx.get(answer.headers["location"], trust_env=False).content == DATA
            assert client.head(f"/v1/files/{KEY}").headers["content-length"] == str(len(DATA))
            assert client.get(f"/v1/files/{MISSING}").status_code == 404
