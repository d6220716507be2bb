"""The whole HTTP application: paths, methods, origins, and errors at unknown paths."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from serve.config.http import HttpConfig
from tests.job_stores import in_loop
from tests.unit.test_authentication import ALICE, API_KEYS, BOB, IMAGE, IMAGES, JOB, JOBS, by, serving

PAGE, OTHER = "https://page.example", "https://other.example"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}


@in_loop
async def test_every_route_is_there_without_v1(tmp_path: Path) -> None:
    async with serving(tmp_path, API_KEYS) as client:
        assert (await client.get("/models")).status_code == 401
        with_key = by(ALICE)
        for path in ("/models", "/models/shapes", "/models/midstep/shapes/versions"):
            versionless = await client.get(path, headers=with_key)
            assert versionless.json() == (await client.get(f"/v1{path}", headers=with_key)).json(), path
        assert (await client.post("/images/generations", json=IMAGE, headers=with_key)).status_code == 200
        made = await client.post("/predictions", json=JOB, headers=with_key)
        assert made.status_code == 201
        path = f"/predictions/{made.json()['id']}"
        assert made.json()["urls"]["get"] == f"http://midstep/v1{path}"
        assert (await client.get(path, headers=with_key)).json()["id"] == made.json()["id"]
        file = await client.get("/files/images/a/0-aaaaaaaaaaaaaaaaaaaaaa.png")
        assert (file.status_code, file.json()["error_type"]) == (404, "file_not_found"), "it is open, too"
        assert (await client.get("/ivez", headers=with_key)).status_code == 404


@in_loop
async def test_where_there_is_nothing_the_nearest_route_is_named(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        for path, nearest in (
            ("/v1/image/generations", "/v1/images/generations"),
            ("/v1/prediction/abc/cancel", "/v1/predictions/{job_id}/cancel"),
            ("/v1/modles", "/v1/models"),
            ("/healthz", "/health"),
        ):
            for method in ("GET", "POST"):
                answer = await client.request(method, path, follow_redirects=False)
                assert (answer.status_code, answer.json()["error_type"]) == (404, "route_not_found")
                told = f"There is nothing at {path}; the nearest route is {nearest}. /docs lists all routes."
                assert answer.json()["detail"] == told
        answer = await client.post("/v1/predictions/", follow_redirects=False)
        assert answer.json()["detail"] == (
            "There is nothing at /v1/predictions/; /v1/predictions is there, and an id may be missing."
        )
        for path in ("/nothing", "/favicon.ico", "/comfy/prompt", "/" + "v1/models" * 1000):
            detail = (await client.get(path)).json()["detail"]
            assert "nearest" not in detail
            assert len(detail) < 300


@in_loop
async def test_a_method_that_a_path_does_not_have_is_answered_with_those_it_has(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        for path, methods in (
            (JOBS, "GET, HEAD, OPTIONS, POST"),
            ("/predictions", "GET, HEAD, OPTIONS, POST"),
            (IMAGES, "OPTIONS, POST"),
            ("/health", "GET, HEAD, OPTIONS"),
        ):
            options = await client.options(path)
            assert (options.status_code, options.headers["allow"], options.content) == (204, methods, b"")
            put = await client.put(path)
            assert (put.status_code, put.headers["allow"]) == (405, methods)
            assert put.json()["error_type"] == "method_not_allowed"
        assert (await client.options("/nothing")).status_code == 404


@in_loop
async def test_head_is_answered_where_get_is(tmp_path: Path) -> None:
    """HEAD of a stream is answered too, although the stream lasts as long as its job, and no runner runs."""
    async with serving(tmp_path, []) as client:
        made = (await client.post(JOBS, json=JOB)).json()
        stream = await client.head(f"{JOBS}/{made['id']}/stream")
        assert stream.headers["content-type"].startswith("text/event-stream")
        for path in ("/v1/models", JOBS, f"{JOBS}/{made['id']}", "/livez", "/docs", "/openapi.json"):
            assert (await client.head(path)).status_code == 200, path


@in_loop
async def test_pages_of_the_origins_that_are_named_may_call_and_read_errors(tmp_path: Path) -> None:
    async with serving(tmp_path, API_KEYS, http={"cors_origins": [PAGE]}) as client:
        preflight = await client.options(IMAGES, headers={"origin": PAGE, **PREFLIGHT})
        assert preflight.status_code == 200, "without a key"
        assert preflight.headers["access-control-allow-origin"] == PAGE
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        refused = await client.options(IMAGES, headers={"origin": OTHER, **PREFLIGHT})
        assert (refused.status_code, refused.json()["error_type"]) == (400, "invalid_request")
        assert "http.cors_origins" in refused.json()["detail"]
        assert "access-control-allow-origin" not in refused.headers
        for status, headers, options in (
            (200, by(ALICE), {"json": IMAGE}),
            (400, by(ALICE), {"json": {}}),
            (401, {}, {"json": IMAGE}),
            (413, by(ALICE), {"content": b" " * (1 << 20)}),
            (500, by(BOB), {"json": {"prompt": "a fault"}}),
        ):
            answer = await client.post(IMAGES, headers={"origin": PAGE, **headers}, **options)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == PAGE, status
            assert "retry-after" in answer.headers["access-control-expose-headers"]
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
            other = await client.post(IMAGES, headers={"origin": OTHER, **headers}, **options)
            assert "access-control-allow-origin" not in other.headers


@in_loop
async def test_pages_of_any_origin_may_call_where_that_is_configured_and_else_none(tmp_path: Path) -> None:
    async with serving(tmp_path / "all", [], http={"cors_origins": ["*"]}) as client:
        answer = await client.get("/v1/models", headers={"origin": OTHER})
        assert answer.headers["access-control-allow-origin"] == "*"
    async with serving(tmp_path / "none", []) as client:
        answer = await client.get("/v1/models", headers={"origin": OTHER})
        assert "access-control-allow-origin" not in answer.headers
        preflight = await client.options(IMAGES, headers={"origin": OTHER, **PREFLIGHT})
        assert (preflight.status_code, preflight.headers["allow"]) == (204, "OPTIONS, POST")


@pytest.mark.parametrize("origin", ["page.example", "https://page.example/", "https://a b", "", "**"])
def test_what_is_no_origin_is_an_error_of_the_configuration(origin: str) -> None:
    with pytest.raises(ValidationError, match="cors_origins"):
        HttpConfig.model_validate({"cors_origins": [origin]})
