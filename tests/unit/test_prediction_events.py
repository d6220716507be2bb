"""Watching and deleting predictions over ASGI: what clients are sent, and when."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Message

from serve.http.replicate.prediction_events import PredictionEventsRoute
from serve.jobs.job import StoredPreview
from serve.jobs.objects import ObjectStore, preview_key
from serve.jobs.records import Progress
from serve.live_ids import live_id
from tests.job_stores import claim_one, in_loop, opened
from tests.unit.test_authentication import ALICE, API_KEYS, BOB, JOB, JOBS, by, serving
from tests.unit.test_predictions_routes import created, database_in

TIMEOUT_S = 20.0
Event = tuple[str, dict[str, Any]]


class Watcher:
    """A client of the events of a job. seen: the events so far"""

    def __init__(self, client: httpx.AsyncClient, job_id: str) -> None:
        self._app: Starlette = client._transport.app  # type: ignore[attr-defined]
        self._path = f"{JOBS}/{job_id}/events"
        self._text = ""
        self._changed = asyncio.Condition()
        self._is_gone = asyncio.Event()
        self.headers: dict[bytes, bytes] = {}

    @property
    def seen(self) -> list[Event]:
        text = self._text.replace("\r\n", "\n")
        blocks = [block.splitlines() for block in text.split("\n\n")[:-1] if block.startswith("event")]
        fields = [dict(line.split(": ", 1) for line in block) for block in blocks]
        return [(one["event"], json.loads(one["data"])) for one in fields]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [data for event, data in self.seen if event == kind]

    async def until(self, condition: Callable[[list[Event]], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S), self._changed:
            await self._changed.wait_for(lambda: condition(self.seen))

    async def run(self) -> None:
        """Returns when the stream ends."""
        scope = {
            "type": "http",
            "method": "GET",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "server": ("midstep", 80),
            "headers": [(b"host", b"midstep")],
        }
        sent_request = False

        async def receive() -> Message:
            nonlocal sent_request
            if not sent_request:
                sent_request = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await self._is_gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            async with self._changed:
                self.headers |= dict(message.get("headers", ()))
                self._text += message.get("body", b"").decode()
                self._changed.notify_all()

        await self._app(scope, receive, send)

    def leave(self) -> None:
        self._is_gone.set()


@asynccontextmanager
async def watching(client: httpx.AsyncClient, job_id: str) -> AsyncIterator[Watcher]:
    """A watcher whose stream has ended when this is left without an exception."""
    watcher = Watcher(client, job_id)
    task = asyncio.create_task(watcher.run())
    try:
        yield watcher
        async with asyncio.timeout(TIMEOUT_S):
            await task
    finally:
        task.cancel()


async def with_previews(client: httpx.AsyncClient) -> dict[str, Any]:
    body = JOB | {"input": JOB["input"] | {"num_previews": 4, "num_outputs": 2}}  # type: ignore[operator]
    response = await client.post(JOBS, json=body)
    assert response.status_code == 201, response.text
    job: dict[str, Any] = response.json()
    return job


async def stored(objects: ObjectStore, job_id: str, image_index: int, index: int, step: int) -> StoredPreview:
    key = preview_key(job_id, image_index, index, "image/jpeg")
    await objects.put(key, f"{image_index} after {step}".encode(), "image/jpeg")
    return StoredPreview(index, step, key)


def shown(preview: dict[str, Any]) -> tuple[int, int, int, str, bytes]:
    picture = base64.b64decode(preview["b64_json"])
    numbers = preview["image_index"], preview["preview_index"], preview["step"]
    return *numbers, preview["media_type"], picture


@in_loop
async def test_a_job_is_watched_from_its_start_to_its_end(tmp_path: Path) -> None:
    objects = ObjectStore(str(tmp_path / "objects"))
    async with serving(tmp_path, []) as client, opened(database_in(tmp_path)) as store:
        job = await with_previews(client)
        async with watching(client, job["id"]) as watcher:
            await watcher.until(lambda seen: len(seen) == 1)
            assert watcher.seen[0] == ("prediction", (await client.get(f"{JOBS}/{job['id']}")).json())
            assert watcher.headers[b"content-type"].startswith(b"text/event-stream")
            assert watcher.of("prediction")[0]["live_id"] == live_id(job["id"])
            claim = await claim_one(store)
            previews = {
                0: await stored(objects, job["id"], 0, 1, 8),
                1: await stored(objects, job["id"], 1, 0, 4),
            }
            await store.queue.record_progress({claim: Progress(12, previews)})
            await watcher.until(lambda seen: [kind for kind, _ in seen].count("preview") == 2)
            previews = {1: await stored(objects, job["id"], 1, 1, 8)}
            await store.queue.record_progress({claim: Progress(16, previews)})
            await watcher.until(lambda seen: [kind for kind, _ in seen].count("preview") == 3)
            await store.queue.record_image(claim, 0, "images/a/0.png", 28)
            await store.queue.succeed(claim, {1: "images/a/1.png"})
        assert [shown(preview) for preview in watcher.of("preview")] == [
            (0, 1, 8, "image/jpeg", b"0 after 8"),
            (1, 0, 4, "image/jpeg", b"1 after 4"),
            (1, 1, 8, "image/jpeg", b"1 after 8"),
        ]
        assert watcher.seen[-1] == ("prediction", (await client.get(f"{JOBS}/{job['id']}")).json())
        predictions = watcher.of("prediction")
        assert predictions[-1]["status"] == "succeeded"
        assert all(one != following for one, following in pairwise(predictions)), "only changes are sent"


@in_loop
async def test_whoever_connects_late_gets_the_newest_previews_of_unfinished_images(tmp_path: Path) -> None:
    objects = ObjectStore(str(tmp_path / "objects"))
    async with serving(tmp_path, []) as client, opened(database_in(tmp_path)) as store:
        job = await with_previews(client)
        claim = await claim_one(store)
        previews = {
            0: await stored(objects, job["id"], 0, 2, 12),
            1: await stored(objects, job["id"], 1, 3, 16),
        }
        await store.queue.record_progress({claim: Progress(28, previews)})
        await store.queue.record_image(claim, 0, "images/a/0.png", 36)
        async with watching(client, job["id"]) as watcher:
            await watcher.until(lambda seen: len(seen) == 2)
            assert [kind for kind, _ in watcher.seen] == ["prediction", "preview"]
            assert shown(watcher.of("preview")[0]) == (1, 3, 16, "image/jpeg", b"1 after 16")
            await store.queue.succeed(claim, {1: "images/a/1.png"})
        async with watching(client, job["id"]) as watcher:
            pass
        assert [kind for kind, _ in watcher.seen] == ["prediction"], "it is over"


@in_loop
async def test_a_preview_that_is_no_longer_there_is_left_out(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client, opened(database_in(tmp_path)) as store:
        job = await with_previews(client)
        claim = await claim_one(store)
        gone = StoredPreview(0, 4, preview_key(job["id"], 0, 0, "image/jpeg"))
        await store.queue.record_progress({claim: Progress(4, {0: gone})})
        async with watching(client, job["id"]) as watcher:
            await watcher.until(lambda seen: len(seen) == 1)
            await store.queue.succeed(claim)
        assert watcher.of("preview") == []
        assert watcher.of("prediction")[-1]["status"] == "succeeded"


@in_loop
async def test_a_waiting_job_is_told_of_its_place_in_the_queue(tmp_path: Path) -> None:
    """Its row does not change when the job before it begins."""
    async with serving(tmp_path, []) as client, opened(database_in(tmp_path)) as store:
        await created(client)
        job = await created(client)
        async with watching(client, job["id"]) as watcher:
            await watcher.until(lambda seen: len(seen) == 1)
            await claim_one(store)
            await watcher.until(lambda seen: len(seen) == 2)
            await store.cancel(job["id"])
        predictions = watcher.of("prediction")
        assert [one["queue_position"] for one in predictions] == [1, 0, None]
        assert predictions[0]["eta_s"] > predictions[1]["eta_s"]
        assert predictions[-1]["status"] == "canceled"


@in_loop
async def test_who_leaves_is_not_followed_any_more(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        job = await created(client)
        app: Starlette = client._transport.app  # type: ignore[attr-defined]
        [listeners] = {
            id(one.endpoint.__self__._store.news): one.endpoint.__self__._store.news._listeners
            for one in app.routes
            if isinstance(one, Route) and isinstance(one.endpoint.__self__, PredictionEventsRoute)
        }.values()
        before = len(listeners)
        async with watching(client, job["id"]) as watcher:
            await watcher.until(lambda seen: len(seen) == 1)
            assert len(listeners) == before + 1
            watcher.leave()
        assert len(listeners) == before


@in_loop
async def test_a_job_that_is_deleted_while_it_is_watched_is_over(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        job = await created(client)
        kept = await created(client)
        path = f"{JOBS}/{job['id']}"
        async with watching(client, job["id"]) as watcher:
            await watcher.until(lambda seen: len(seen) == 1)
            answer = await client.delete(path)
            assert (answer.status_code, answer.content) == (204, b"")
        assert watcher.of("prediction")[-1]["status"] == "canceled"
        for method, of_it in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/events")):
            gone = await client.request(method, path + of_it)
            assert (gone.status_code, gone.json()["error_type"]) == (404, "prediction_not_found")
        assert [one["id"] for one in (await client.get(JOBS)).json()["results"]] == [kept["id"]]


@in_loop
async def test_a_job_is_watched_and_deleted_by_its_owner_only(tmp_path: Path) -> None:
    async with serving(tmp_path, API_KEYS) as client:
        job = (await client.post(JOBS, json=JOB, headers=by(ALICE))).json()
        path = f"{JOBS}/{job['id']}"
        for method, of_it in (("DELETE", ""), ("GET", "/events")):
            assert (await client.request(method, path + of_it)).status_code == 401
            assert (await client.request(method, path + of_it, headers=by(BOB))).status_code == 404
        assert (await client.get(path, headers=by(ALICE))).status_code == 200
        assert (await client.delete(path, headers=by(ALICE))).status_code == 204
        assert (await client.options(path, headers=by(ALICE))).headers[
            "allow"
        ] == "DELETE, GET, HEAD, OPTIONS"


@in_loop
async def test_a_key_of_a_deleted_job_makes_another_one(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        key = {"idempotency-key": "k"}
        job = await created(client, **key)
        assert (await created(client, **key))["id"] == job["id"]
        assert (await client.delete(f"{JOBS}/{job['id']}")).status_code == 204
        assert (await created(client, **key))["id"] != job["id"]


@in_loop
async def test_previews_are_asked_for_with_the_job(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client, opened(database_in(tmp_path)) as store:
        job = await with_previews(client)
        kept = await store.get(job["id"])
        assert kept is not None
        assert kept.request.num_previews == 4
        body = {"version": "shapes", "input": {"prompt": "a red star", "num_previews": 9}}
        refused = await client.post(JOBS, json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "input.num_previews")
