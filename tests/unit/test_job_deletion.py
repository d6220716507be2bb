"""Deleted jobs: nobody sees them, and none of their objects stays, whatever their runners do meanwhile."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deployments.engine.messages import Picture
from serve.errors import IdempotencyKeyReusedError
from serve.generation import GenerationEvent, GenerationRequest, ImageDone, StartPicture
from serve.jobs.cleaning import Cleaning
from serve.jobs.durable_files import write_whole
from serve.jobs.inputs import JobInputs
from serve.jobs.job import IdempotencyKey, JobState, WebhookEvent
from serve.jobs.objects import ObjectStore
from serve.jobs.records import Progress
from serve.jobs.store import JobStore
from tests.job_stores import (
    LONG,
    History,
    Transition,
    claim_one,
    in_loop,
    new_job,
    opened,
    told,
    webhook,
)
from tests.unit.test_job_runner import PICTURE, both_images, running, until, until_state
from tests.unit.test_objects import files_under

KEY = IdempotencyKey("k", "f")


@in_loop
async def test_nobody_sees_a_deleted_job(url: str) -> None:
    async with opened(url) as store:
        for job_id in "abc":
            await store.create(new_job(job_id, owner="alice"))
        assert not await store.delete("b", "bob")
        assert not await store.delete("nothing", "alice")
        assert await store.delete("b", "alice")
        assert not await store.delete("b", "alice")
        assert await store.get("b", "alice") is None
        assert await store.cancel("b", "alice") is None
        assert [job.id for job in (await store.page(10, owner="alice")).items] == ["c", "a"]
        assert [job.id for job in await store.queue.claim(10, LONG)] == ["a", "c"]
        assert [job.id for job in await store.housekeeping.deleted(10)] == ["b"]


@in_loop
async def test_what_is_not_finished_is_canceled_and_its_runner_refused(url: str, history: History) -> None:
    async with opened(url) as store:
        await store.create(new_job("a", webhook=webhook(WebhookEvent.COMPLETED)))
        claim = await claim_one(store)
        assert await store.delete("a")
        assert not await store.queue.record_image(claim, 0, "images/a/0.png", 10)
        assert await store.queue.record_progress({claim: Progress(5)}) == set()
        assert not await store.queue.succeed(claim)
        assert await store.queue.held([claim]) == set()
        reason = "Its client has deleted it."
        assert history.of("a")[-1] == Transition(JobState.CANCELED, 1, reason)
        assert [(event, payload["status"]) for _, event, payload in await told(store)] == [
            (WebhookEvent.COMPLETED, "canceled")
        ]


@in_loop
async def test_what_is_finished_stays_so_and_makes_no_news(url: str) -> None:
    async with opened(url) as store:
        job = await store.create(new_job("a", webhook=webhook(WebhookEvent.COMPLETED)))
        await store.queue.succeed(await claim_one(store))
        assert len(await told(store)) == 1
        assert await store.delete("a")
        assert await told(store) == []
        found = await store.find(job)
        assert found is not None
        assert (found.state, found.is_deleted) == (JobState.SUCCEEDED, True)


@in_loop
async def test_its_idempotency_key_is_free_again(url: str) -> None:
    async with opened(url) as store:
        await store.create(new_job("a", key=KEY))
        await store.delete("a")
        assert await store.with_key("", KEY) is None
        other = IdempotencyKey("k", "another payload")
        assert (await store.create(new_job("b", key=other))).id == "b"
        with pytest.raises(IdempotencyKeyReusedError):
            await store.create(new_job("c", key=KEY))


@in_loop
async def test_whoever_follows_it_learns_that_it_is_over(url: str) -> None:
    async with opened(url) as store, opened(url) as client:
        job = await client.create(new_job("a"))
        states = []
        async with asyncio.timeout(20), aclosing(client.follow(job)) as followed:
            async for job in followed:
                states.append(job.state)
                if len(states) == 1:
                    await store.delete("a")
        assert (states[0], states[-1]) == (JobState.STARTING, JobState.CANCELED)


@in_loop
async def test_its_data_goes_at_once_and_its_row_when_jobs_are_forgotten(url: str) -> None:
    async with opened(url) as store:
        job = await store.create(new_job("a"))
        await store.queue.succeed(await claim_one(store))
        await store.delete("a")
        assert await store.housekeeping.expired(LONG, 10) == []
        await store.housekeeping.remove_data(await store.housekeeping.deleted(10))
        assert await store.housekeeping.deleted(10) == []
        found = await store.find(job)
        assert found is not None
        assert (found.data_removed, found.input, found.output, found.request.prompt) == (True, {}, {}, "")
        await store.housekeeping.forget(await store.housekeeping.old(-60, 10))
        assert await store.find(job) is None


async def deleted_by(store: JobStore) -> None:
    """Returns once a runner has removed the data of all deleted jobs."""

    async def are_removed() -> bool:
        return not await store.housekeeping.deleted(1)

    await until(are_removed)


@in_loop
async def test_a_runner_deletes_its_objects_soon(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.jobs.job_runner._DELETION_INTERVAL_S", 0.05)
    async with opened(sqlite_url) as store, running(store, tmp_path / "objects", both_images):
        for job_id in ("deleted", "kept"):
            await store.create(new_job(job_id))
            await until_state(store, JobState.SUCCEEDED, job_id)
        await store.delete("deleted")
        await deleted_by(store)
        paths = files_under(tmp_path / "objects")
        assert {path.parent.name for path in paths} == {"kept"}
        assert len(paths) == 2


@in_loop
async def test_an_image_that_is_being_stored_meanwhile_does_not_stay(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner's next round has deleted the job's objects before this one is there."""
    monkeypatch.setattr("serve.jobs.job_runner._DELETION_INTERVAL_S", 0.05)
    folder, began, may_go_on = tmp_path / "objects", threading.Event(), threading.Event()
    is_left = asyncio.Event()
    written: list[bool] = []

    def write_slowly(root: Path, key: str, data: bytes, is_durable: bool) -> None:
        began.set()
        may_go_on.wait(20)
        write_whole(root, key, data, is_durable)
        written.append((root / key).exists())

    monkeypatch.setattr("serve.jobs.objects.write_whole", write_slowly)

    async def script(request: GenerationRequest, *_: object) -> AsyncGenerator[GenerationEvent, None]:
        try:
            yield ImageDone(0, request.seed, PICTURE)
            await asyncio.Event().wait()
        finally:
            is_left.set()

    async with opened(sqlite_url) as store, running(store, folder, script):
        await store.create(new_job("job"))
        await asyncio.to_thread(began.wait, 20)
        await store.delete("job")
        await deleted_by(store)
        assert files_under(folder) == []
        may_go_on.set()
        async with asyncio.timeout(20):
            await is_left.wait()

        async def nothing_is_left() -> bool:
            return not files_under(folder)

        await until(nothing_is_left)
    assert written == [True]


@in_loop
async def test_what_a_dead_runner_left_goes_with_the_row(sqlite_url: str, tmp_path: Path) -> None:
    objects = ObjectStore(str(tmp_path / "objects"))
    async with opened(sqlite_url) as store:
        inputs = JobInputs(store.database, objects)
        cleaning = Cleaning(store, objects, inputs, retention_s=LONG, forget_after_s=-60.0)
        for job_id in ("deleted", "canceled"):
            await store.create(new_job(job_id))
        await store.delete("deleted")
        await cleaning.remove_deleted()
        await objects.put("images/deleted/0-late.png", b"an image")
        await store.cancel("canceled")
        await cleaning.remove_old()
        assert files_under(tmp_path / "objects") == []


@in_loop
async def test_the_picture_that_it_started_from_goes_too(sqlite_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    objects = ObjectStore(str(folder))
    start = StartPicture(sha256="", mask_sha256=None, has_mask=False, height=64, width=64)
    async with opened(sqlite_url) as store:
        inputs = JobInputs(store.database, objects)
        await inputs.keep("job", Picture(np.zeros((64, 64, 3), np.uint8)))
        new = new_job("job")
        await store.create(replace(new, request=replace(new.request, start=start)))
        assert len(files_under(folder)) == 1
        await store.delete("job")
        await Cleaning(store, objects, inputs, LONG, LONG).remove_deleted()
        assert files_under(folder) == []
