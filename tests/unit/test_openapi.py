"""The OpenAPI document has all routes, and the server's answers match it."""

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from httpx import AsyncClient, Response
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from starlette.applications import Starlette
from starlette.routing import Route

from serve.http.limits import MAX_UPLOAD_BYTES
from serve.http.operations import EXAMPLE_PICTURE, operation_of
from tests.job_stores import in_loop
from tests.unit.test_authentication import ALICE, API_KEYS, IMAGE, IMAGES, JOB, JOBS, POOR, by, serving

Document = Mapping[str, Any]
_SECURITY = {"apiKey": []}


async def document_of(client: AsyncClient) -> dict[str, Any]:
    answer = await client.get("/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    document: dict[str, Any] = answer.json()
    return document


def application_of(client: AsyncClient) -> Starlette:
    app: Starlette = client._transport.app  # type: ignore[attr-defined]
    return app


def check(document: Document, schema: Any, value: object) -> None:
    """Raises ValidationError unless the value fits the document's schema."""
    Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def check_answer(document: Document, path: str, answer: Response) -> None:
    """Asserts that status, content type and body match the document's operation of a path."""
    operation = document["paths"][path][answer.request.method.lower()]
    assert str(answer.status_code) in operation["responses"], answer.text
    content = operation["responses"][str(answer.status_code)]["content"]
    media_type = answer.headers["content-type"].partition(";")[0]
    assert media_type in content
    if media_type.endswith("json"):
        check(document, content[media_type]["schema"], answer.json())


@in_loop
async def test_every_route_is_described_and_the_document_is_valid(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        document = await document_of(client)
        validate(document)
        shown = [one for one in application_of(client).routes if isinstance(one, Route)]
        shown = [one for one in shown if one.include_in_schema]
        assert [one.path for one in shown if operation_of(one.endpoint) is None] == []
        methods = {(one.path_format, method.lower()) for one in shown for method in one.methods or ()}
        described = {(path, method) for path, item in document["paths"].items() for method in item}
        assert described == {(path, method) for path, method in methods if method != "head"}
        for path, method in described:
            operation = document["paths"][path][method]
            assert operation["summary"]
            assert operation["tags"]
            assert {one["name"] for one in operation["parameters"] if one["in"] == "path"} == set(
                re.findall(r"\{(\w+)\}", path)
            )


@in_loop
async def test_bodies_are_the_models_that_parse_them_and_examples_are_served(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        document = await document_of(client)
        schema = document["components"]["schemas"]["ImagesBody"]
        assert schema["additionalProperties"] is False
        assert schema["required"] == ["prompt"]
        for path, item in document["paths"].items():
            for method, operation in item.items():
                body = operation.get("requestBody", {"content": {}})["content"].get("application/json")
                for example in (body or {"examples": {}})["examples"].values():
                    check(document, body["schema"], example["value"])
                    url = path.replace("{owner}", "midstep").replace("{name}", "shapes")
                    answer = await client.request(method, url, json=example["value"])
                    assert answer.is_success, answer.text
                    if not answer.headers["content-type"].startswith("text/event-stream"):
                        check_answer(document, path, answer)


@in_loop
async def test_events_of_streams_fit_their_schemas(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        document = await document_of(client)
        content = document["paths"][IMAGES]["post"]["responses"]["200"]["content"]["text/event-stream"]
        events = {one["properties"]["event"]["const"]: one for one in content["schema"]["oneOf"]}
        for prompt, last in (("a red star", "image_generation.completed"), ("a fault", "error")):
            answer = await client.post(IMAGES, json={"prompt": prompt, "stream": True})
            assert answer.headers["content-type"].startswith("text/event-stream")
            sent = re.findall(r"event: (\S+)\r?\ndata: (.+)\r?\n", answer.text)
            assert [name for name, _ in sent] == [last]
            for name, data in sent:
                check(document, events[name], {"event": name, "data": data})
                check(document, events[name]["properties"]["data"]["contentSchema"], json.loads(data))


@in_loop
async def test_where_keys_are_needed_the_document_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path, API_KEYS) as client:
        document = await document_of(client)
        assert document["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
        for path, item in document["paths"].items():
            for method, operation in item.items():
                url = re.sub(r"\{\w+\}", "x", path)
                answer = await client.request(method, url)
                is_refused = answer.status_code == 401
                assert operation.get("security", []) == ([_SECURITY] if is_refused else []), path
                assert ("401" in operation["responses"]) == is_refused
                if is_refused:
                    check_answer(document, path, answer)


@in_loop
async def test_without_keys_nothing_is_said_of_them(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        document = await document_of(client)
        assert "securitySchemes" not in document["components"]
        assert not any(
            "401" in one["responses"] for item in document["paths"].values() for one in item.values()
        )


ONE, OF_A_MODEL = JOBS + "/{job_id}", "/v1/models/{owner}/{name}/predictions"
FILES = "/v1/files"
EDITS = "/v1/images/edits"
EDIT = IMAGE | {"image": EXAMPLE_PICTURE}
LARGER_THAN_A_FILE = {"content": b" " * (MAX_UPLOAD_BYTES + 1), "headers": by(ALICE)}
TOO_LARGE = {"content": b" " * (1 << 20), "headers": by(ALICE)}
COMPRESSED = {"content": b"{}", "headers": by(ALICE) | {"content-encoding": "gzip"}}


ELSEWHERE = "https://example.com/x.safetensors"  # no adapters are fetched here
JOB_WITH_ADAPTER = JOB | {"input": {**JOB["input"], "lora_weights": ELSEWHERE}}
CLIENT_ERRORS: list[tuple[int, str, str, Mapping[str, Any]]] = [
    (400, "POST", IMAGES, {"json": {}}),
    (404, "POST", IMAGES, {"json": IMAGE | {"model": "x"}}),
    (403, "POST", IMAGES, {"json": IMAGE | {"loras": [ELSEWHERE]}}),
    (413, "POST", IMAGES, TOO_LARGE),
    (415, "POST", IMAGES, COMPRESSED),
    (422, "POST", IMAGES, {"json": IMAGE | {"deadline_s": 0.1}}),
    (429, "POST", IMAGES, {"json": IMAGE, "headers": by(POOR)}),
    (413, "POST", JOBS, LARGER_THAN_A_FILE),
    *(
        entry
        for path in (EDITS, "/v1/images/variations")
        for entry in (
            (400, "POST", path, {"json": IMAGE}),
            (404, "POST", path, {"json": EDIT | {"model": "x"}}),
            (403, "POST", path, {"json": EDIT | {"loras": [ELSEWHERE]}}),
            (413, "POST", path, LARGER_THAN_A_FILE),
            (415, "POST", path, {"json": EDIT | {"image": "data:image/png;base64,eA=="}}),
            (422, "POST", path, {"json": EDIT | {"deadline_s": 0.1}}),
            (429, "POST", path, {"json": EDIT, "headers": by(POOR)}),
        )
    ),
    (415, "POST", JOBS, COMPRESSED),
    (404, "POST", JOBS, {"json": JOB | {"version": "x"}}),
    (403, "POST", JOBS, {"json": JOB_WITH_ADAPTER}),
    (403, "POST", OF_A_MODEL, {"json": JOB_WITH_ADAPTER}),
    (422, "POST", JOBS, {"json": JOB, "headers": by(ALICE) | {"prefer": "wait=0"}}),
    (429, "POST", JOBS, {"json": JOB, "headers": by(POOR)}),
    (400, "GET", JOBS, {"params": {"cursor": "x"}}),
    (404, "GET", ONE, {}),
    (404, "DELETE", ONE, {}),
    (404, "GET", f"{ONE}/events", {}),
    (404, "POST", f"{ONE}/cancel", {}),
    (404, "GET", f"{ONE}/stream", {}),
    (404, "GET", "/v1/models/{id}", {}),
    (404, "GET", "/v1/adapters/{id}", {}),
    (404, "GET", "/v1/models/{owner}/{name}", {}),
    (404, "GET", "/v1/models/{owner}/{name}/versions", {}),
    (404, "GET", "/v1/models/{owner}/{name}/versions/{version}", {}),
    (404, "POST", OF_A_MODEL, {"json": JOB}),
    (422, "POST", OF_A_MODEL, {"json": {}}),
    (413, "POST", OF_A_MODEL, LARGER_THAN_A_FILE),
    (415, "POST", OF_A_MODEL, COMPRESSED),
    (429, "POST", OF_A_MODEL, {"json": JOB, "headers": by(POOR)}),
    (404, "GET", "/v1/files/{folder}/{name}", {}),
    (404, "GET", "/metrics", {}),
    (400, "GET", FILES, {"params": {"cursor": "x"}}),
    (400, "POST", FILES, {"files": {"contents": b"a field with another name"}}),
    (413, "POST", FILES, {"files": {"content": ("large", bytes(MAX_UPLOAD_BYTES))}}),
    (415, "POST", FILES, {"files": {"content": b"x"}, "headers": COMPRESSED["headers"] | by(ALICE)}),
    (404, "GET", f"{FILES}/{{file_id}}", {}),
    (404, "DELETE", f"{FILES}/{{file_id}}", {}),
    *(
        entry
        for path, body, too_large in (
            ("/sdapi/v1/txt2img", IMAGE, TOO_LARGE),
            ("/sdapi/v1/img2img", IMAGE | {"init_images": [EXAMPLE_PICTURE]}, LARGER_THAN_A_FILE),
        )
        for entry in (
            (404, "POST", path, {"json": body | {"override_settings": {"sd_model_checkpoint": "x"}}}),
            (413, "POST", path, too_large),
            (415, "POST", path, COMPRESSED),
            (422, "POST", path, {"json": body | {"tiling": True}}),
            (429, "POST", path, {"json": body, "headers": by(POOR)}),
        )
    ),
    (404, "POST", "/sdapi/v1/options", {"json": {"sd_model_checkpoint": "x"}}),
    (413, "POST", "/sdapi/v1/options", TOO_LARGE),
    (415, "POST", "/sdapi/v1/options", COMPRESSED),
    (422, "POST", "/sdapi/v1/options", {"json": {"sd_vae": "x"}}),
    (413, "POST", "/sdapi/v1/png-info", LARGER_THAN_A_FILE),
    (415, "POST", "/sdapi/v1/png-info", COMPRESSED),
    (422, "POST", "/sdapi/v1/png-info", {"json": {"image": "x"}}),
]


@in_loop
async def test_what_is_documented_can_be_had(tmp_path: Path) -> None:
    async with serving(tmp_path, API_KEYS, http={"metrics": False}) as client:
        document = await document_of(client)
        for status, method, path, request in CLIENT_ERRORS:
            options = {"headers": by(ALICE), **request}
            url = re.sub(r"\{\w+\}", "x" if status == 404 else "shapes", path)
            answer = await client.request(method, url, **options)
            if status == 429 and answer.is_success:  # the first one may have any size
                answer = await client.request(method, url, **options)
            assert answer.status_code == status, f"{path}: {answer.text}"
            check_answer(document, path, answer)
        had = {(method.lower(), path, str(status)) for status, method, path, _ in CLIENT_ERRORS}
        documented = {
            (method, path, status)
            for path, item in document["paths"].items()
            for method, operation in item.items()
            for status in operation["responses"]
            if status.startswith("4") and status not in ("401", "408")  # tested elsewhere
        }
        documented.remove(("get", "/v1/webhooks/default/secret", "403"))  # the answer without API keys
        assert documented - had == set()


class Links(HTMLParser):
    """The files that a page needs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


@in_loop
async def test_the_viewer_needs_no_other_host_and_no_key(tmp_path: Path) -> None:
    async with serving(tmp_path, API_KEYS) as client:
        page = await client.get("/docs")
        assert page.headers["content-security-policy"].startswith("default-src 'self';")
        links = Links()
        links.feed(page.text)
        assert len(links.found) == 4
        for link in links.found:
            answer = await client.get(str(page.url.join(link)))
            assert (answer.status_code, answer.url.host) == (200, page.url.host)
            assert answer.content
        start = (await client.get("/docs/start.js")).text
        assert 'url: "openapi.json"' in start
        assert "validatorUrl: null" in start
        for name in ("x", "%2e%2e", "main.py", "..%2fmain.py"):
            assert (await client.get(f"/docs/{name}")).status_code in (401, 404)
