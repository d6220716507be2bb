"""The routes of jobs and of the model over ASGI without a runner: the clients' answers."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest

from serve.jobs.job import Job
from serve.jobs.records import Claim, Progress
from serve.jobs.store import JobStore
from tests.job_stores import LONG, claim_one, in_loop, opened
from tests.postgresql import Way
from tests.unit.test_authentication import JOB, JOBS, serving

WAIT = {"prefer": "wait=1"}
TIMEOUT_S = 20.0


def database_in(folder: Path) -> str:
    return f"sqlite:///{folder / 'jobs.sqlite'}"


async def created(client: httpx.AsyncClient, **headers: str) -> dict[str, Any]:
    response = await client.post(JOBS, json=JOB, headers=headers)
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    assert response.headers["location"] == answer["urls"]["get"]
    return answer


async def newest(store: JobStore) -> Sequence[Job]:
    return (await store.page(1)).items


async def first(look: Callable[[], Awaitable[Sequence[Job]]]) -> Job:
    """The first job that can be seen before long."""
    async with asyncio.timeout(TIMEOUT_S):
        while not (seen := await look()):  # noqa: ASYNC110  (of a database: there is nothing to be told by)
            await asyncio.sleep(0.01)
    return seen[0]


@in_loop
async def test_a_wait_that_is_over_answers_that_it_is_starting(tmp_path: Path) -> None:
    """Even if it is processing, because Replicate's client takes that for the end of the job."""
    async with serving(tmp_path, []) as client, opened(database_in(tmp_path)) as store:
        job = await created(client, **WAIT)
        assert (job["status"], job["output"], job["queue_position"]) == ("starting", None, 0)
        await claim_one(store)
        waiting = asyncio.create_task(created(client, **WAIT))
        claimed = await first(lambda: store.queue.claim(1, LONG))
        answered = await waiting
        assert answered["id"] == claimed.id
        assert answered["status"] == "starting"
        assert answered["started_at"] is not None
        assert (await client.get(f"{JOBS}/{answered['id']}")).json()["status"] == "processing"


@in_loop
async def test_a_wait_ends_with_the_job(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client, opened(database_in(tmp_path)) as store:
        waiting = asyncio.create_task(created(client, prefer="wait=60"))
        claim = Claim.of(await first(lambda: store.queue.claim(1, LONG)))
        await store.queue.record_image(claim, 0, "images/a/0.png", 20)
        assert await store.queue.succeed(claim)
        answered = await waiting
        assert (answered["status"], answered["progress"]) == ("succeeded", 1.0)
        assert answered["output"] == ["http://midstep/v1/files/images/a/0.png"]


@in_loop
async def test_what_was_created_is_told_though_the_database_goes_away(
    tmp_path: Path, postgresql_url: str
) -> None:
    """A client that does not hear of its job submits it again, and it would be made twice."""
    with TemporaryDirectory() as folder:
        way = Way(postgresql_url, Path(folder))
        async with (
            serving(tmp_path, [], database_url=way.url) as client,
            opened(postgresql_url) as store,
        ):
            waiting = asyncio.create_task(created(client, prefer="wait=60"))
            made = await first(lambda: newest(store))
            await way.close()
            job = await waiting
            assert (job["id"], job["status"]) == (made.id, "starting")
            asked = await client.get(f"{JOBS}/{job['id']}")
            assert (asked.status_code, asked.json()["error_type"]) == (503, "job_store_unavailable")
            way.open()
            assert (await client.get(f"{JOBS}/{job['id']}")).json()["status"] == "starting"


@in_loop
async def test_what_is_no_id_of_a_job_is_not_found(tmp_path: Path, url: str) -> None:
    """PostgreSQL allows no zero byte in a text."""
    async with serving(tmp_path, [], database_url=url) as client:
        for job_id in ("%00", "x", "A" * 26, "0" * 25, "0" * 26, "0" * 26 + "%0A", "%F0%9F%98%80"):
            for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/stream")):
                answer = await client.request(method, f"{JOBS}/{job_id}{path}")
                assert answer.status_code == 404, job_id
                assert answer.json()["error_type"] == "prediction_not_found"


@pytest.mark.parametrize("wait", ["9" * 5000, "0", "61", "1.5", "-1", "٣", "soon"])
@in_loop
async def test_a_wait_that_is_none_is_refused(tmp_path: Path, wait: str) -> None:
    async with serving(tmp_path, []) as client:
        headers = {"prefer": f"wait={wait}".encode()}
        answer = await client.post(JOBS, json=JOB, headers=headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "Prefer")
        assert (await client.get(JOBS)).json()["results"] == []


@in_loop
async def test_a_stream_goes_on_after_the_event_that_is_named_and_else_from_the_start(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client, opened(database_in(tmp_path)) as store:
        job = await created(client)
        claim = await claim_one(store)
        await store.queue.record_image(claim, 0, "images/a/0.png", 20)
        assert await store.queue.succeed(claim)

        async def events(last_event_id: str) -> list[str]:
            stream = await client.get(
                f"{JOBS}/{job['id']}/stream", headers={"last-event-id": last_event_id.encode()}
            )
            assert stream.status_code == 200
            return [line for line in stream.text.splitlines() if line.startswith(("event", "id"))]

        whole = ["id: 1-0", "event: output", "id: 1-20", "event: logs", "id: 1-20", "event: done"]
        for none_of_ours in (
            "",
            "x",
            "9" * 5000,
            f"{'9' * 5000}-1",
            f"1-{'9' * 5000}",
            "-1-0",
            "١-٠",
            "1-0-0",
        ):
            assert await events(none_of_ours) == whole
        assert await events("1-0") == whole[2:]
        assert await events("1-20") == whole[4:]


@in_loop
async def test_a_job_that_waits_has_a_place_in_the_queue_and_a_time(tmp_path: Path) -> None:
    """A call takes 0.1 s by the pipeline's costs in this test, so twenty steps take about two seconds."""
    async with serving(tmp_path, []) as client, opened(database_in(tmp_path)) as store:
        ids = [(await created(client))["id"] for _ in range(3)]
        shown = [(await client.get(f"{JOBS}/{job_id}")).json() for job_id in ids]
        assert [job["queue_position"] for job in shown] == [0, 1, 2]
        assert shown[0]["eta_s"] == pytest.approx(2.0, rel=0.2)
        assert shown[0]["eta_s"] < shown[1]["eta_s"] < shown[2]["eta_s"]
        claim = await claim_one(store)
        await store.queue.record_progress({claim: Progress(10)})
        begun = (await client.get(f"{JOBS}/{ids[0]}")).json()
        assert (begun["status"], begun["progress"], begun["queue_position"]) == ("processing", 0.5, None)
        assert begun["eta_s"] == pytest.approx(shown[0]["eta_s"] / 2, abs=0.01)
        assert (await client.get(f"{JOBS}/{ids[1]}")).json()["queue_position"] == 0


@in_loop
async def test_keys_that_come_often_and_at_once_make_one_job_each(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        made = await asyncio.gather(
            *(created(client, **{"idempotency-key": f"key-{number % 100}"}) for number in range(1000))
        )
        ids = defaultdict(set)
        for number, job in enumerate(made):
            ids[number % 100].add(job["id"])
        assert [len(of_key) for of_key in ids.values()] == [1] * 100
        listed = (await client.get(JOBS)).json()
        assert {job["id"] for job in listed["results"]} == set.union(*ids.values())
        assert (len(listed["results"]), listed["next"]) == (100, None)


@in_loop
async def test_the_model_as_openais_clients_ask_for_it(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        page = (await client.get("/v1/models")).json()
        [model] = page["data"]
        assert page["object"] == "list"
        assert (model["id"], model["object"], model["owned_by"]) == ("shapes", "model", "midstep")
        assert isinstance(model["created"], int)
        assert {"DDIM", "DPM++ 2M", "UniPC 3"} <= set(model["samplers"])
        assert model["defaults"] == {
            "sampler": "DPM++ 2M",
            "num_inference_steps": 20,
            "guidance_scale": 5.0,
            "width": 128,
            "height": 128,
            "negative_prompt": None,
        }
        assert model["limits"] == {
            "min_size": 64,
            "max_width": 256,
            "max_height": 256,
            "max_pixels": 1024 * 1024,
            "size_multiple": 8,
            "max_num_inference_steps": 100,
            "max_num_images": 10,
            "max_prompt_length": 4000,
        }
        assert (await client.get("/v1/models/shapes")).json() == model
        [as_at_replicate] = page["results"]
        assert (page["next"], page["previous"]) == (None, None)
        assert as_at_replicate == (await client.get(as_at_replicate["url"])).json()
        assert (as_at_replicate["owner"], as_at_replicate["name"]) == ("midstep", "shapes")
        other = await client.get("/v1/models/dall-e-3")
        assert (other.status_code, other.json()["error_type"]) == (404, "model_not_found")


@in_loop
async def test_the_model_and_its_version_as_replicates_client_asks_for_them(tmp_path: Path) -> None:
    path = "/v1/models/somebody/shapes"
    async with serving(tmp_path, []) as client:
        model = (await client.get(path)).json()
        assert (model["owner"], model["name"], model["url"]) == (
            "somebody",
            "shapes",
            f"http://midstep{path}",
        )
        version = model["latest_version"]
        assert version["id"] == "shapes"
        schemas = version["openapi_schema"]["components"]["schemas"]
        assert schemas["Input"]["required"] == ["prompt"]
        assert schemas["Output"]["type"] == "array"
        assert (await client.get(f"{path}/versions")).json()["results"] == [version]
        assert (await client.get(f"{path}/versions/shapes")).json() == version
        other = "/v1/models/somebody/sdxl"
        for unknown in (other, f"{other}/versions", f"{other}/versions/shapes", f"{path}/versions/2"):
            answer = await client.get(unknown)
            assert (answer.status_code, answer.json()["error_type"]) == (404, "model_not_found"), unknown
        refused = await client.post(f"{other}/predictions", json={"input": JOB["input"]})
        assert (refused.status_code, refused.json()["error_type"]) == (404, "model_not_found")
        job = await client.post(f"{path}/predictions", json={"input": JOB["input"]})
        assert (job.status_code, job.json()["version"]) == (201, version["id"])
