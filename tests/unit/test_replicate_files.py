"""`/v1/files` over ASGI: accepted and refused files, and their owners."""

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.http.limits import MAX_UPLOAD_BYTES
from serve.http.replicate import paging
from tests.job_stores import in_loop
from tests.unit.test_authentication import ALICE, API_KEYS, BOB, JOBS, by, serving

FILES = "/v1/files"
DATA = bytes(range(256)) * 8192  # more than is kept in memory while it comes
Parts = list[tuple[str, tuple[str | None, bytes | str, str] | tuple[str | None, bytes | str]]]


async def created(client: httpx.AsyncClient, parts: Parts | None = None, key: str = "") -> dict[str, Any]:
    parts = parts or [("content", ("star.png", DATA, "image/png"))]
    response = await client.post(FILES, files=parts, headers=by(key))
    assert response.status_code == 201, response.text
    file: dict[str, Any] = response.json()
    return file


@in_loop
async def test_a_file_is_created_listed_fetched_and_deleted(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        file = await created(client)
        sha256, md5 = hashlib.sha256(DATA).hexdigest(), hashlib.md5(DATA).hexdigest()
        assert (file["name"], file["content_type"], file["size"]) == ("star.png", "image/png", len(DATA))
        assert (file["checksums"], file["etag"]) == ({"sha256": sha256, "md5": md5}, sha256)
        assert file["metadata"] == {}
        assert file["created_at"].endswith("Z")
        assert file["created_at"] < file["expires_at"]
        assert (await client.get(f"{FILES}/{file['id']}")).json() == file
        page = (await client.get(FILES)).json()
        assert page == {"next": None, "previous": None, "results": [file]}
        whole = await client.get(file["urls"]["get"])
        assert (whole.status_code, whole.content) == (200, DATA)
        head = await client.head(file["urls"]["get"])
        assert dict(head.headers) == dict(whole.headers)
        assert whole.headers["content-disposition"] == "attachment; filename*=UTF-8''star.png"
        deleted = await client.delete(f"{FILES}/{file['id']}")
        assert (deleted.status_code, deleted.content) == (204, b"")
        for method, path in (
            ("GET", f"{FILES}/{file['id']}"),
            ("DELETE", f"{FILES}/{file['id']}"),
            ("GET", file["urls"]["get"]),
        ):
            answer = await client.request(method, path)
            assert (answer.status_code, answer.json()["error_type"]) == (404, "file_not_found")
        assert (await client.get(FILES)).json()["results"] == []


@in_loop
async def test_files_are_their_clients_own_and_their_urls_are_for_whoever_has_them(tmp_path: Path) -> None:
    async with serving(tmp_path, API_KEYS) as client:
        file = await created(client, key=ALICE)
        path = f"{FILES}/{file['id']}"
        for method in ("GET", "DELETE"):
            answer = await client.request(method, path, headers=by(BOB))
            assert (answer.status_code, answer.json()["error_type"]) == (404, "file_not_found")
        assert (await client.get(FILES, headers=by(BOB))).json()["results"] == []
        assert (await client.get(path, headers=by(ALICE))).json() == file
        url = httpx.URL(file["urls"]["get"])
        assert url.params["owner"] == "alice"
        assert (await client.get(url)).content == DATA
        for wrong in ({"signature": ""}, {"signature": "%C3%A9"}, {"signature": url.params["signature"][1:]}):
            answer = await client.get(url.copy_merge_params(wrong), headers=by(ALICE))
            assert (answer.status_code, answer.json()["error_type"]) == (404, "file_not_found")
        assert (await client.get(f"{path}/download", headers=by(ALICE))).status_code == 404


@in_loop
async def test_pages_of_files_go_on_by_their_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "PAGE_SIZE", 2)
    async with serving(tmp_path, [], public_url="http://midstep/") as client:
        ids = [(await created(client))["id"] for _ in range(3)]
        page = (await client.get(FILES)).json()
        assert [file["id"] for file in page["results"]] == ids[:0:-1]
        older = (await client.get(page["next"])).json()
        assert [file["id"] for file in older["results"]] == ids[:1]
        assert (await client.get(older["previous"])).json()["results"] == page["results"]
        answer = await client.get(FILES, params={"cursor": "x"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "cursor")


@pytest.mark.parametrize(
    ("parts", "name", "content_type", "metadata"),
    [
        ([], "star.png", "image/png", {}),
        ([("filename", (None, "a b/é.webp"))], "a b/é.webp", "image/png", {}),
        ([("type", (None, "text/plain; charset=utf-8"))], "star.png", "text/plain; charset=utf-8", {}),
        ([("metadata", (None, '{"a": [1, "\\u0000"]}'))], "star.png", "image/png", {"a": [1, "\x00"]}),
        ([("metadata", ("blob", b'{"b": null}', "application/json"))], "star.png", "image/png", {"b": None}),
        (
            [("metadata[a]", (None, "1")), ("metadata[b c]", (None, "x"))],
            "star.png",
            "image/png",
            {"a": "1", "b c": "x"},
        ),
    ],
)
@in_loop
async def test_what_clients_tell_of_a_file(
    tmp_path: Path, parts: Parts, name: str, content_type: str, metadata: dict[str, Any]
) -> None:
    async with serving(tmp_path, []) as client:
        file = await created(client, [("content", ("star.png", b"bytes", "image/png")), *parts])
        assert (file["name"], file["content_type"], file["metadata"]) == (name, content_type, metadata)
        assert (await client.get(file["urls"]["get"])).headers["content-type"] == content_type


CONTENT: Parts = [("content", ("a", b"bytes"))]


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([("metadata", (None, "{}"))], "content"),
        ([("content", (None, "no file"))], "content"),
        ([*CONTENT, ("file", ("a", b""))], "file"),
        ([*CONTENT, ("purpose", (None, "vision"))], "purpose"),
        ([*CONTENT, ("metadata[a][b]", (None, "x"))], "metadata[a][b]"),
        ([*CONTENT, ("metadata", (None, "x"))], "metadata"),
        ([*CONTENT, ("metadata", (None, "[]"))], "metadata"),
        ([*CONTENT, ("metadata", (None, '{"a": NaN}'))], "metadata"),
        ([*CONTENT, ("metadata", (None, '{"a": 1e999}'))], "metadata"),
        ([*CONTENT, ("metadata", (None, '{"a": "\\ud800"}'))], "metadata"),
        ([*CONTENT, ("metadata", (None, "[" * 2000))], "metadata"),
        ([*CONTENT, ("metadata", ("blob", b"\xff"))], "metadata"),
        ([*CONTENT, ("metadata", ("blob", b" " * 70_000))], "metadata"),
        ([*CONTENT, *((f"metadata[{item}]", (None, "x" * 10_000)) for item in range(7))], "metadata"),
        ([*CONTENT, ("filename", (None, "a\x00b"))], "filename"),
        ([*CONTENT, ("filename", (None, "é" * 128))], "filename"),
        ([*CONTENT, ("type", (None, "image"))], "type"),
        ([*CONTENT, ("type", (None, "image/png\r\nset-cookie: a"))], "type"),
        ([*CONTENT, ("metadata", (None, " " * 70_000))], None),
        ([("content", (f"{n}", b"bytes")) for n in range(5)], None),
        ([*CONTENT, *((f"metadata[{n}]", (None, "")) for n in range(101))], None),
    ],
)
@in_loop
async def test_what_is_no_file_is_refused_and_the_field_is_named(
    tmp_path: Path, parts: Parts, param: str | None
) -> None:
    async with serving(tmp_path, []) as client:
        answer = await client.post(FILES, files=parts)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
        assert (await client.get(FILES)).json()["results"] == []


@pytest.mark.parametrize(
    ("content_type", "body", "status", "param"),
    [
        ("application/json", b"{}", 400, "Content-Type"),
        ("application/x-www-form-urlencoded", b"content=a", 400, "Content-Type"),
        ("", b"", 400, "Content-Type"),
        ("multipart/form-data", b"", 400, None),
        ("multipart/form-data; boundary=a", b"", 400, None),
        ("multipart/form-data; boundary=a", b"--a--\r\n", 400, "content"),
        ("multipart/form-data; boundary=a", b"--a\r\n\x00", 400, None),
        ("multipart/form-data; boundary=a", b"--a\r\n\r\nno name\r\n--a--\r\n", 400, None),
        (f"multipart/form-data; boundary={'a' * 5000}", b"--a\r\n", 400, None),
        (
            "multipart/form-data; boundary=a; charset=undefined",
            b'--a\r\ncontent-disposition: form-data; name="\xff"\r\n\r\n\xff\r\n--a--\r\n',
            400,
            "Content-Type",
        ),
        (
            "multipart/form-data; boundary=a; charset=utf-7",
            b'--a\r\ncontent-disposition: form-data; name="content"; filename="+2AA-"\r\n\r\nx\r\n--a--\r\n',
            400,
            "Content-Type",
        ),
        (
            "multipart/form-data; boundary=a; charset=UTF-8",
            b'--a\r\ncontent-disposition: form-data; name="\xff"\r\n\r\nx\r\n--a--\r\n',
            400,
            "content",
        ),
    ],
)
@in_loop
async def test_a_body_that_is_no_form_is_refused(
    tmp_path: Path, content_type: str, body: bytes, status: int, param: str | None
) -> None:
    async with serving(tmp_path, []) as client:
        answer = await client.post(FILES, content=body, headers={"content-type": content_type})
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
        gzipped = await client.post(FILES, content=body, headers={"content-encoding": "gzip"})
        assert gzipped.status_code == 415


@in_loop
async def test_a_body_that_is_too_large_is_refused_as_soon_as_that_shows(tmp_path: Path) -> None:
    taken = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal taken
        yield b'--a\r\ncontent-disposition: form-data; name="content"; filename="a"\r\n\r\n'
        for _ in range(2 * MAX_UPLOAD_BYTES // 2**20):
            taken += 2**20
            yield b" " * 2**20

    async with serving(tmp_path, []) as client:
        headers = {"content-type": "multipart/form-data; boundary=a"}
        answer = await client.post(FILES, content=parts(), headers=headers)
        assert (answer.status_code, answer.json()["error_type"]) == (413, "body_too_large")
        assert str(MAX_UPLOAD_BYTES) in answer.json()["detail"]
        assert taken <= MAX_UPLOAD_BYTES + 2**20
        assert (await client.get(FILES)).json()["results"] == []


@in_loop
async def test_what_is_no_id_of_a_file_is_not_found(tmp_path: Path, url: str) -> None:
    """PostgreSQL allows no zero byte in a text."""
    async with serving(tmp_path, [], database_url=url) as client:
        for file_id in ("%00", "x", "images", "0" * 26, "0" * 26 + "%0A", "%F0%9F%98%80"):
            for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/download?signature=%00")):
                answer = await client.request(method, f"{FILES}/{file_id}{path}")
                assert (answer.status_code, answer.json()["error_type"]) == (404, "file_not_found"), file_id


@in_loop
async def test_a_path_without_its_id_is_not_found_in_a_sentence(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        for path in (FILES, JOBS, "/v1/models", "/v1/images/generations", "/livez"):
            for method in ("GET", "POST", "DELETE", "PUT"):
                answer = await client.request(method, f"{path}/")
                assert (answer.status_code, answer.json()["error_type"]) == (404, "route_not_found")
                assert f"{path} is there, and an id may be missing" in answer.json()["detail"]


@in_loop
async def test_who_asks_and_what_signs_webhooks(tmp_path: Path) -> None:
    async with serving(tmp_path, API_KEYS) as client:
        account = (await client.get("/v1/account", headers=by(ALICE))).json()
        assert (account["type"], account["username"], account["name"]) == ("user", "alice", "alice")
        secret = (await client.get("/v1/webhooks/default/secret", headers=by(ALICE))).json()
        assert secret == {"key": (tmp_path / "webhook_secret").read_text()}
    async with serving(tmp_path, []) as client:
        assert (await client.get("/v1/account")).json()["username"] == "anonymous"
        refused = await client.get("/v1/webhooks/default/secret", headers=by(ALICE))
        assert (refused.status_code, refused.json()["error_type"]) == (403, "forbidden")
        assert "webhook_secret" in refused.json()["detail"]
        assert secret["key"] not in json.dumps(refused.json())
        [hardware] = (await client.get("/v1/hardware")).json()
        assert hardware.keys() == {"name", "sku"}
