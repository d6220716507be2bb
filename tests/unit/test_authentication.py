"""API keys in front of the whole HTTP application: access, owners of jobs, and charges."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from deployments.engine.cost import CostModel
from deployments.engine.messages import EncodedImage, Picture, TokenCount
from deployments.engine.model_source import ModelRef, load_model_info
from serve.calls.fleet import Fleet
from serve.calls.pipeline import FROM_THE_START, Pipeline
from serve.calls.stage_costs import StageCosts
from serve.calls.telemetry import Telemetry
from serve.clients import Clients
from serve.config.api_keys import key_sha256
from serve.config.app import AppConfig
from serve.generation import GenerationEvent, GenerationRequest, ImageDone, PromptEncoded, Resume
from serve.http.app import build_http_app
from serve.http.authentication import Authentication
from serve.jobs.resources import resolve
from tests.generation_requests import SOME_MODEL
from tests.job_stores import in_loop
from tests.unit.test_admission import COST

ALICE, BOB, POOR = "mst_alice", "mst_bob", "mst_poor"
# An image of 20 steps is 2 s of work by COST, with 16 rows per forward: 24 s of alice's limit.
LIMITS = {ALICE: 5.0, BOB: None, POOR: 0.01}
API_KEYS = [
    {
        "name": key.removeprefix("mst_"),
        "key_sha256": key_sha256(key),
        "device_seconds_per_minute": limit,
    }
    for key, limit in LIMITS.items()
]
JOBS, IMAGES = "/v1/predictions", "/v1/images/generations"
JOB = {"version": "shapes", "input": {"prompt": "a red star", "seed": 1}}
IMAGE = {"prompt": "a red star"}


class KnownCosts(StageCosts):
    """Costs that no stage has to be asked for."""

    def known(self, model: ModelRef | None = None) -> CostModel:
        return COST

    async def of(self, model: ModelRef | None, deadline: float) -> CostModel:
        return COST

    def is_resident(self, model: ModelRef | None) -> bool:
        return model is None


class InstantPipeline(Pipeline):
    """A pipeline without stages: every image is done at once.

    seen: gets each request and its picture
    """

    def __init__(self, seen: list[tuple[GenerationRequest, Picture | None]]) -> None:
        nobody = cast(Any, None)
        super().__init__(nobody, nobody, nobody, SOME_MODEL, Telemetry())
        self.costs = KnownCosts(nobody, nobody, nobody, SOME_MODEL)
        self._seen = seen

    async def generate(
        self,
        request: GenerationRequest,
        picture: Picture | None = None,
        resume: Resume = FROM_THE_START,
    ) -> AsyncGenerator[GenerationEvent, None]:
        self._seen.append((request, picture))
        if request.prompt == "a fault":
            raise ZeroDivisionError
        yield PromptEncoded(TokenCount(3, 3), TokenCount(0, 0))
        for index in range(request.num_images):
            yield ImageDone(index, request.seed + index, EncodedImage(b"image", "image/png", 128, 128))


class LoneFleet(Fleet):
    """A fleet without a Serve to watch."""

    async def watch(self) -> None: ...


class Refused(Counter[str]):
    """Replaces the metric; counts by code."""

    def inc(self, tags: Mapping[str, str]) -> None:
        self[tags["code"]] += 1


@asynccontextmanager
async def serving(
    folder: Path,
    api_keys: list[dict[str, Any]],
    refused: Refused | None = None,
    http: Mapping[str, Any] = MappingProxyType({}),
    seen: list[tuple[GenerationRequest, Picture | None]] | None = None,
    adapters: Mapping[str, Any] = MappingProxyType({}),
    **jobs: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """refused: counts instead of the metric; http, adapters, jobs: sections of the configuration

    seen: gets the requests that are served at once, with their pictures
    """
    config = AppConfig.model_validate(
        {
            "denoiser": {"rows_per_forward": 16},
            "ingress": {"drain_timeout_s": 61},
            "jobs": {"data_folder": str(folder)} | jobs,
            "http": http,
            "adapters": dict(adapters),
            "api_keys": api_keys,
        }
    )
    config = config.model_copy(update={"jobs": resolve(config.jobs)})
    pipeline = InstantPipeline([] if seen is None else seen)
    info = load_model_info(config.model.source())
    stages = {stage: stage.title() for stage in ("encoder", "denoiser", "decoder", "runner")}
    app = build_http_app(config, info, pipeline, LoneFleet("app", stages, "Ingress", "a replica"))
    if refused is not None:
        app.state.refused = refused
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://midstep")
    async with app.router.lifespan_context(app), client:
        yield client


def by(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("headers", [{}, by("mst_wrong"), {"authorization": f"Basic {ALICE}"}])
@in_loop
async def test_without_a_known_key_nothing_but_files_and_health_is_there(
    headers: dict[str, str], tmp_path: Path
) -> None:
    async with serving(tmp_path, API_KEYS) as client:
        for method, path in (
            ("POST", IMAGES),
            ("POST", JOBS),
            ("GET", JOBS),
            ("GET", f"{JOBS}/x"),
            ("POST", f"{JOBS}/x/cancel"),
            ("GET", f"{JOBS}/x/stream"),
            ("POST", "/v1/models/midstep/shapes/predictions"),
            ("GET", "/v1/models"),
            ("POST", "/v1/files"),
            ("GET", "/v1/files"),
            ("GET", f"/v1/files/{'0' * 26}"),
            ("DELETE", f"/v1/files/{'0' * 26}"),
            ("GET", "/v1/account"),
            ("GET", "/v1/webhooks/default/secret"),
            ("GET", "/v1/hardware"),
            ("GET", "/v1/status"),
            ("GET", "/v1/status/stream"),
            ("GET", "/nothing"),
            ("GET", "/livez/x"),
            ("GET", "http://midstep//livez"),  # without the host, httpx would take livez for it
        ):
            answer = await client.request(method, path, headers=headers)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-should-retry"] == "false"
            assert answer.headers["content-type"] == "application/problem+json"
            problem = answer.json()
            assert problem["error_type"] == problem["error"]["code"] == "invalid_api_key"
            assert problem["error"]["message"] == problem["detail"]
        assert (await client.get("/livez", headers=headers)).text == "ok"
        file = await client.get("/v1/files/images/a/0-aaaaaaaaaaaaaaaaaaaaaa.png", headers=headers)
        assert (file.status_code, file.json()["error_type"]) == (404, "file_not_found")
        assert (await client.get("/v1/models", headers=by(ALICE))).status_code == 200
        assert (await client.get("/nothing", headers=by(ALICE))).status_code == 404


@in_loop
async def test_every_error_is_counted_by_its_code_whoever_answers(tmp_path: Path) -> None:
    refused = Refused()
    async with serving(tmp_path, API_KEYS, refused) as client:
        assert (await client.get("/livez")).status_code == 200
        assert refused == {}
        for status, code, method, path, headers, body in (
            (401, "invalid_api_key", "POST", IMAGES, {}, IMAGE),
            (404, "route_not_found", "GET", "/nothing", by(ALICE), None),
            (405, "method_not_allowed", "GET", IMAGES, by(ALICE), None),
            (400, "invalid_request", "POST", IMAGES, by(ALICE), {}),
            (404, "prediction_not_found", "GET", f"{JOBS}/x", by(ALICE), None),
            (500, "internal_error", "POST", IMAGES, by(BOB), {"prompt": "a fault"}),
        ):
            answer = await client.request(method, path, headers=headers, json=body)
            assert (answer.status_code, answer.json()["error_type"]) == (status, code)
            assert refused == {code: 1}
            refused.clear()


@in_loop
async def test_costs_that_are_learned_are_held_against_the_time_to_drain(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)  # Serve may have turned it off
    async with serving(tmp_path, []):
        await asyncio.sleep(0)  # to what it does besides its routes
    assert "ingress.drain_timeout_s: 61 s is too short" in caplog.text


@in_loop
async def test_without_keys_everybody_is_served_whatever_they_send(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        created = await client.post(JOBS, json=JOB)
        assert created.status_code == 201
        for headers in ({}, by("none")):
            found = await client.get(f"{JOBS}/{created.json()['id']}", headers=headers)
            assert found.status_code == 200
            assert (await client.post(IMAGES, json=IMAGE, headers=headers)).status_code == 200


@in_loop
async def test_a_job_of_another_client_is_not_there(tmp_path: Path) -> None:
    async with serving(tmp_path, API_KEYS) as client:
        ids = {}
        for key in (ALICE, BOB):
            created = await client.post(JOBS, json=JOB, headers=by(key) | {"idempotency-key": "the same"})
            assert created.status_code == 201
            ids[key] = created.json()["id"]
        assert ids[ALICE] != ids[BOB]
        for key, other in ((ALICE, BOB), (BOB, ALICE)):
            listed = (await client.get(JOBS, headers=by(key))).json()["results"]
            assert [job["id"] for job in listed] == [ids[key]]
            for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/stream")):
                answer = await client.request(method, f"{JOBS}/{ids[other]}{path}", headers=by(key))
                assert (answer.status_code, answer.json()["error_type"]) == (404, "prediction_not_found")
        for key, job_id in ids.items():
            found = await client.get(f"{JOBS}/{job_id}", headers=by(key))
            assert found.json()["status"] == "starting", "nobody else has canceled it"
            canceled = await client.post(f"{JOBS}/{job_id}/cancel", headers=by(key))
            assert canceled.json()["status"] == "canceled"
            stream = await client.get(f"{JOBS}/{job_id}/stream", headers=by(key))
            assert "event: done" in stream.text


@in_loop
async def test_the_url_of_a_stream_is_for_whoever_has_it(tmp_path: Path) -> None:
    """Replicate's npm client sends no key there."""
    async with serving(tmp_path, API_KEYS) as client:
        created = (await client.post(JOBS, json=JOB, headers=by(ALICE))).json()
        await client.post(created["urls"]["cancel"], headers=by(ALICE))
        url = httpx.URL(created["urls"]["stream"])
        stream = await client.get(url)
        assert (stream.status_code, stream.headers["content-type"][:17]) == (200, "text/event-stream")
        assert "event: done" in stream.text
        signed = url.params["signature"]
        other = (await client.post(JOBS, json=JOB, headers=by(BOB))).json()
        for wrong in (
            {"signature": ""},
            {"signature": "é"},
            {"signature": httpx.URL(other["urls"]["stream"]).params["signature"]},
            {"owner": "bob"},
            {"owner": ""},
        ):
            answer = await client.get(url.copy_merge_params(wrong))
            assert (answer.status_code, answer.json()["error_type"]) == (404, "prediction_not_found"), wrong
        others = httpx.URL(other["urls"]["stream"]).copy_merge_params({"owner": "alice", "signature": signed})
        assert (await client.get(others)).status_code == 404
        listed = (await client.get(JOBS, headers=by(ALICE))).json()["results"]
        assert listed[0]["urls"] == created["urls"]
    async with serving(tmp_path, []) as client:
        assert (await client.get(url)).status_code == 404, "it is of a client that is not known any more"


@in_loop
async def test_past_its_limit_a_client_is_refused_and_others_are_not(tmp_path: Path) -> None:
    """One request is more than a minute of this limit. It passes, and the next one waits for hours."""
    async with serving(tmp_path, API_KEYS) as client:
        first = await client.post(IMAGES, json=IMAGE, headers=by(POOR))
        assert first.status_code == 200, first.text
        for path, body in ((IMAGES, IMAGE), (JOBS, JOB), (IMAGES, IMAGE | {"stream": True})):
            refused = await client.post(path, json=body, headers=by(POOR))
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            assert int(refused.headers["retry-after"]) > 3600
            assert (await client.post(path, json=body, headers=by(BOB))).is_success
        assert (await client.get(JOBS, headers=by(POOR))).json()["results"] == []


@in_loop
async def test_what_comes_to_nothing_or_comes_again_is_not_charged(tmp_path: Path) -> None:
    """Each would take 24 s of a minute. If more than two were charged, the last one would be refused."""
    async with serving(tmp_path, API_KEYS) as client:
        headers = by(ALICE) | {"idempotency-key": "k"}
        ids = {(await client.post(JOBS, json=JOB, headers=headers)).json()["id"] for _ in range(5)}
        assert len(ids) == 1
        other = JOB | {"input": {"prompt": "another"}}
        for _ in range(5):
            reused = await client.post(JOBS, json=other, headers=headers)
            assert (reused.status_code, reused.json()["error_type"]) == (422, "idempotency_key_reused")
            wrong = await client.post(JOBS, json={"version": "shapes", "input": {}}, headers=by(ALICE))
            assert wrong.status_code == 422
            late = await client.post(IMAGES, json=IMAGE | {"deadline_s": 0.1}, headers=by(ALICE))
            assert (late.status_code, late.json()["error_type"]) == (422, "deadline_too_early")
        (await client.post(IMAGES, json=IMAGE, headers=by(ALICE))).raise_for_status()


@in_loop
async def test_a_refusal_reads_nothing_and_what_passes_is_not_held_back() -> None:
    sent: list[Any] = []

    async def events(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["state"]["client"].name == "alice"
        assert (await receive())["body"] == b"read by whom it is for"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"event", "more_body": True})
            assert len(sent) == number + 2, "each is sent on before the next is made"

    async def receive() -> Any:
        assert scope["headers"], "nothing is read of one without a key"
        return {"type": "http.request", "body": b"read by whom it is for", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    whole = Starlette()
    whole.state.refused = Refused()
    app = Authentication(events, Clients(AppConfig.model_validate({"api_keys": API_KEYS}).api_keys), [])
    scope: Any = {"type": "http", "method": "POST", "path": IMAGES, "query_string": b"", "headers": []}
    scope["app"] = whole
    await app(scope, receive, send)
    start, body = sent
    assert start["status"] == 401
    assert json.loads(body["body"])["instance"] == IMAGES
    sent.clear()
    scope["headers"] = [(b"authorization", f"Bearer {ALICE}".encode())]
    await app(scope, receive, send)
    assert len(sent) == 4
