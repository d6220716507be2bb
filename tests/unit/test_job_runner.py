"""The runner: the results of jobs, however their attempts end. The pipeline is scripted, the rest is real."""

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestServer
from safetensors.torch import save
from sqlalchemy import event, make_url, select

from deployments.engine.messages import Checkpoint, EncodedImage, TokenCount
from serve.config.internal import InternalConfig
from serve.errors import (
    GenerationFailedError,
    ObjectStoreUnavailableError,
    PoisonousRequestError,
    StorageFullError,
)
from serve.generation import (
    GenerationEvent,
    GenerationRequest,
    ImageDone,
    ImageProgress,
    PromptEncoded,
    Resume,
)
from serve.jobs.checkpoints import checkpoint_key, to_bytes
from serve.jobs.job import JobState, Webhook, WebhookEvent
from serve.jobs.job_runner import JobRunner, RunnerSettings
from serve.jobs.metrics import JobMetrics
from serve.jobs.objects import ObjectStore, answer_key
from serve.jobs.store import JobStore
from serve.jobs.tables import jobs
from serve.jobs.uploads import NewFile, Uploads
from serve.jobs.webhooks import WebhookSender, new_secret
from tests.job_stores import DEAD, LONG, History, claim_one, counted, in_loop, new_job, opened, state_of
from tests.postgresql import Way

Script = Callable[[GenerationRequest, Resume], AsyncGenerator[GenerationEvent, None]]
PICTURE = EncodedImage(b"a picture", "image/png", 64, 64)
FINGERPRINT = "0a" * 32
SETTINGS = RunnerSettings(
    max_images=4,
    lease_s=LONG,
    poll_interval_s=LONG,
    retention_s=LONG,
    forget_after_s=LONG,
    answer_retention_s=LONG,
    fingerprint=lambda _: FINGERPRINT,
)
TIMEOUT_S = 60.0


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint("somebody", step, step, torch.full((1, 2, 3), float(step)))


def failing(error: Exception) -> Script:
    async def script(*_: object) -> AsyncGenerator[GenerationEvent, None]:
        raise error
        yield

    return script


@asynccontextmanager
async def running(
    store: JobStore,
    folder: Path,
    script: Script,
    settings: RunnerSettings = SETTINGS,
    kind: type[ObjectStore] = ObjectStore,
) -> AsyncIterator[ObjectStore]:
    objects = kind(str(folder))
    async with WebhookSender([new_secret()], allow_private=True, timeout_s=LONG) as webhooks:
        task = asyncio.create_task(JobRunner(store, objects, webhooks, script, settings).run())
        try:
            yield objects
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], Any]) -> None:
    """Waits until the condition is true."""
    async with asyncio.timeout(TIMEOUT_S):
        while not await condition():  # noqa: ASYNC110  (of a database: there is nothing to be told by)
            await asyncio.sleep(0.01)


async def until_state(store: JobStore, state: JobState, job_id: str = "job") -> None:
    async def reached() -> bool:
        return await state_of(store, job_id) is state

    await until(reached)


async def states_in_the_log(history: History, job_id: str = "job") -> list[tuple[JobState, int]]:
    """Waits for the last one, because the log has each state shortly after the database."""

    async def is_over() -> bool:
        return any(state.is_final for state, _ in history.states(job_id))

    await until(is_over)
    return history.states(job_id)


async def both_images(request: GenerationRequest, *_: object) -> AsyncGenerator[GenerationEvent, None]:
    for index in (1, 0):
        yield ImageDone(index, request.seed + index, PICTURE)


@in_loop
async def test_images_are_stored_and_the_job_succeeds(sqlite_url: str, tmp_path: Path) -> None:
    async with opened(sqlite_url) as store, running(store, tmp_path, both_images) as objects:
        await store.create(new_job("job"))
        await until_state(store, JobState.SUCCEEDED)
        job = await store.get("job")
        assert job is not None
        assert sorted(job.output) == [0, 1]
        assert job.steps_done == job.num_steps
        for key in job.output.values():
            assert await objects.read(key) == b"a picture"


@in_loop
async def test_another_runner_goes_on_from_images_and_checkpoints(sqlite_url: str, tmp_path: Path) -> None:
    asked: list[Resume] = []
    began = asyncio.Event()

    async def script(
        _: GenerationRequest, __: object, resume: Resume
    ) -> AsyncGenerator[GenerationEvent, None]:
        asked.append(resume)
        if len(asked) == 1:
            yield ImageDone(1, 8, PICTURE)
            yield ImageProgress(0, checkpoint(3), 3)
            began.set()
            await asyncio.Event().wait()
        yield ImageDone(0, 7, PICTURE)

    async with opened(sqlite_url) as store:
        await store.create(new_job("job"))
        async with running(store, tmp_path, script):
            await began.wait()
        assert await state_of(store, "job") is JobState.STARTING, "a runner that stops gives back"

        async def nothing_is_left() -> bool:
            return not list((tmp_path / "checkpoints").glob("*/*"))

        async with running(store, tmp_path, script):
            await until_state(store, JobState.SUCCEEDED)
            await until(nothing_is_left)  # unneeded checkpoints are deleted
        assert asked[1].done == {1}
        assert asked[1].checkpoints[0].call == 3
        assert torch.equal(asked[1].checkpoints[0].state, checkpoint(3).state)
        assert len(list((tmp_path / "images" / "job").iterdir())) == 2


@in_loop
async def test_a_fault_is_tried_again_and_the_third_is_the_last(sqlite_url: str, tmp_path: Path) -> None:
    script = failing(GenerationFailedError("A stage failed."))
    async with opened(sqlite_url) as store, running(store, tmp_path, script):
        await store.create(new_job("job"))
        await until_state(store, JobState.FAILED)
        job = await store.get("job")
        assert job is not None
        assert (job.attempt, job.error) == (3, "A stage failed.")


@in_loop
async def test_a_poisonous_job_has_one_attempt(sqlite_url: str, tmp_path: Path, history: History) -> None:
    script = failing(PoisonousRequestError("2 replicas died from this request."))
    async with opened(sqlite_url) as store, running(store, tmp_path, script):
        await store.create(new_job("job"))
        await until_state(store, JobState.FAILED)
        states = await states_in_the_log(history)
        assert states == [(JobState.STARTING, 0), (JobState.PROCESSING, 1), (JobState.FAILED, 1)]


@in_loop
async def test_a_canceled_job_is_left_in_the_middle(sqlite_url: str, tmp_path: Path) -> None:
    began, left = asyncio.Event(), asyncio.Event()

    async def script(*_: object) -> AsyncGenerator[GenerationEvent, None]:
        try:
            began.set()
            await asyncio.Event().wait()
            yield ImageDone(0, 7, PICTURE)
        finally:
            left.set()

    async with opened(sqlite_url) as store, running(store, tmp_path, script):
        await store.create(new_job("job"))
        await began.wait()
        await store.cancel("job")
        async with asyncio.timeout(TIMEOUT_S):
            await left.wait()
        assert await state_of(store, "job") is JobState.CANCELED


@in_loop
async def test_another_process_wakes_the_runner_for_jobs_cancels_and_webhooks(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself it would look only in an hour."""
    monkeypatch.setattr("serve.jobs.store._FOLLOW_INTERVAL_S", LONG)
    left, told = asyncio.Event(), asyncio.Event()

    async def script(*_: object) -> AsyncGenerator[GenerationEvent, None]:
        try:
            await asyncio.Event().wait()
            yield ImageDone(0, 7, PICTURE)
        finally:
            left.set()

    async def answer(_: web.Request) -> web.Response:
        told.set()
        return web.Response()

    app = web.Application()
    app.router.add_post("/", answer)
    async with (
        asyncio.timeout(TIMEOUT_S),
        opened(url) as store,
        opened(url) as client,
        running(store, tmp_path, script),
        TestServer(app, host="127.0.0.1") as server,
    ):
        hook = Webhook(f"http://127.0.0.1:{server.port}/", frozenset({WebhookEvent.COMPLETED}))
        await asyncio.sleep(0.2)  # it has looked and found nothing
        job = await client.create(new_job("job", webhook=hook))
        async with aclosing(client.follow(job)) as states:
            async for job in states:
                if job.state is JobState.PROCESSING:
                    await client.cancel("job")
        assert job.state is JobState.CANCELED
        await left.wait()
        await told.wait()


@in_loop
async def test_without_any_news_all_is_found_in_time(url: str, tmp_path: Path) -> None:
    async with (
        opened(url) as store,
        running(store, tmp_path, both_images, replace(SETTINGS, poll_interval_s=0.01)),
    ):
        await store.news.stop()
        job = await store.create(new_job("job"))
        async with aclosing(store.follow(job)) as states:
            async for job in states:
                last = job.state
        assert last is JobState.SUCCEEDED


@in_loop
async def test_an_idle_runner_asks_the_database_for_little(url: str, tmp_path: Path) -> None:
    statements: list[str] = []

    def keep(_c: object, _u: object, statement: str, *_: object) -> None:
        statements.append(statement)

    settings = replace(SETTINGS, poll_interval_s=InternalConfig().poll_interval_s)
    async with opened(url) as store:
        for engine in {store.database.reader.sync_engine, store.database.writer.sync_engine}:
            event.listen(engine, "before_cursor_execute", keep)
        began = time.monotonic()
        async with running(store, tmp_path, both_images, settings):
            await asyncio.sleep(4.0)
        # A slower machine asks less often. At the start it migrates the tables, and each loop looks once.
        assert len(statements) <= 10 + (time.monotonic() - began), statements


class FullDisk(ObjectStore):
    """Has no room for the first images."""

    refusals = 2

    async def put(self, key: str, data: bytes, media_type: str = "application/octet-stream") -> None:
        if key.startswith("images/") and self.refusals:
            self.refusals -= 1
            raise StorageFullError("The object store has no room left.")
        await super().put(key, data, media_type)


@in_loop
async def test_an_image_waits_for_room_and_is_not_made_twice(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.jobs.rounds._AWAY_INTERVAL_S", 0.01)
    made = []

    async def script(request: GenerationRequest, *_: object) -> AsyncGenerator[GenerationEvent, None]:
        made.append(request.request_id)
        for index in range(2):
            yield ImageDone(index, 7 + index, PICTURE)

    async with opened(sqlite_url) as store, running(store, tmp_path, script, kind=FullDisk) as objects:
        await store.create(new_job("job"))
        await until_state(store, JobState.SUCCEEDED)
        assert made == ["job"]
        assert isinstance(objects, FullDisk)
        assert objects.refusals == 0


class Unreadable(ObjectStore):
    """Cannot be reached when the first checkpoints are read."""

    refusals = 3

    async def read(self, key: str) -> bytes:
        if self.refusals:
            self.refusals -= 1
            raise ObjectStoreUnavailableError("The object store cannot be reached, or refuses us.")
        return await super().read(key)


@in_loop
async def test_a_job_waits_for_its_checkpoints_and_does_not_fail(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history: History
) -> None:
    monkeypatch.setattr("serve.jobs.rounds._AWAY_INTERVAL_S", 0.01)
    asked: list[Resume] = []

    async def script(
        request: GenerationRequest, _: object, resume: Resume
    ) -> AsyncGenerator[GenerationEvent, None]:
        asked.append(resume)
        for index in range(2):
            yield ImageDone(index, request.seed + index, PICTURE)

    # One more failure would end it.
    async with opened(sqlite_url, max_attempts=1) as store:
        await store.create(new_job("job"))
        assert await store.queue.give_back(await claim_one(store))
        await ObjectStore(str(tmp_path)).put(checkpoint_key("job", 1), to_bytes(checkpoint(3), FINGERPRINT))
        async with running(store, tmp_path, script, kind=Unreadable) as objects:
            await until_state(store, JobState.SUCCEEDED)
        assert isinstance(objects, Unreadable)
        assert objects.refusals == 0
        [resume] = asked
        assert resume.checkpoints[1].call == 3
        assert (await states_in_the_log(history))[-2:] == [(JobState.PROCESSING, 2), (JobState.SUCCEEDED, 2)]


@in_loop
async def test_a_checkpoint_of_other_weights_is_left_and_its_image_begun_anew(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Resume] = []
    counted_as_left: list[None] = []
    monkeypatch.setattr(JobMetrics, "count_left_checkpoint", lambda _: counted_as_left.append(None))

    async def script(
        request: GenerationRequest, _: object, resume: Resume
    ) -> AsyncGenerator[GenerationEvent, None]:
        asked.append(resume)
        for index in range(2):
            yield ImageDone(index, request.seed + index, PICTURE)

    async with opened(sqlite_url) as store:
        await store.create(new_job("job"))
        assert await store.queue.give_back(await claim_one(store))
        objects = ObjectStore(str(tmp_path))
        await objects.put(checkpoint_key("job", 0), to_bytes(checkpoint(3), "0b" * 32))
        # Like checkpoints before they had a fingerprint.
        await objects.put(
            checkpoint_key("job", 1), save({"state": torch.zeros(1), "progress": torch.ones(2)})
        )
        async with running(store, tmp_path, script):
            await until_state(store, JobState.SUCCEEDED)
    assert asked == [Resume()]
    assert len(counted_as_left) == 2
    assert "the checkpoint of image 0 cannot be used: it was made with other weights" in caplog.text


class Outages:
    """Outages of a database, during which nothing can be written. url: of that database"""

    def __init__(self, url: str, folder: str) -> None:
        self._file = make_url(url).database if url.startswith("sqlite") else None
        self._way = None if self._file else Way(url, Path(folder))
        self.url = self._way.url if self._way else url

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        if self._way:
            await self._way.close()
            yield
            self._way.open()
            return
        with closing(sqlite3.connect(self._file or "", timeout=20, check_same_thread=False)) as other:
            await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")  # may have to wait for the runner
            yield


@in_loop
async def test_a_database_that_was_away_for_long_costs_no_runner_its_jobs(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history: History
) -> None:
    """Their leases have expired, and the runner often waited for the database in its look for jobs."""
    monkeypatch.setattr("serve.jobs.rounds._AWAY_INTERVAL_S", 0.01)
    began, is_made = asyncio.Event(), asyncio.Event()
    made = []

    async def script(request: GenerationRequest, *_: object) -> AsyncGenerator[GenerationEvent, None]:
        made.append(request.request_id)
        began.set()
        await is_made.wait()
        for index in range(2):
            yield ImageDone(index, request.seed + index, PICTURE)

    settings = replace(SETTINGS, lease_s=0.2)
    with TemporaryDirectory() as folder:
        outages = Outages(url, folder)
        async with opened(outages.url) as store:
            await store.create(new_job("job"))
            async with running(store, tmp_path, script, settings):
                await began.wait()
                for _ in range(5):
                    async with outages.one():
                        await asyncio.sleep(3 * settings.lease_s)
                    await asyncio.sleep(0.1)
                async with outages.one():
                    is_made.set()
                    await asyncio.sleep(3 * settings.lease_s)
                await until_state(store, JobState.SUCCEEDED)
            assert made == ["job"]
            assert (await states_in_the_log(history))[1:] == [
                (JobState.PROCESSING, 1),
                (JobState.SUCCEEDED, 1),
            ]
            job = await store.get("job")
            assert job is not None
            assert sorted(job.output) == [0, 1]


@in_loop
async def test_no_more_is_claimed_than_there_is_room_for(sqlite_url: str, tmp_path: Path) -> None:
    """A runner for four images has room for two jobs of two images each."""
    gate = asyncio.Event()

    async def script(request: GenerationRequest, *_: object) -> AsyncGenerator[GenerationEvent, None]:
        await gate.wait()
        for index in range(2):
            yield ImageDone(index, request.seed + index, PICTURE)

    async with opened(sqlite_url) as store:
        for number in range(5):
            await store.create(new_job(f"job-{number}"))
        async with running(store, tmp_path, script):

            async def two_have_begun() -> bool:
                return (await counted(store))[JobState.PROCESSING] == 2

            await until(two_have_begun)
            await asyncio.sleep(0.1)
            assert (await counted(store))[JobState.PROCESSING] == 2
            gate.set()
            for number in range(5):
                await until_state(store, JobState.SUCCEEDED, f"job-{number}")


@in_loop
async def test_a_runner_that_lost_a_job_may_take_it_up_again(
    sqlite_url: str, tmp_path: Path, history: History
) -> None:
    """Its lease expired, and another runner took the job and died. The later of its attempts counts."""
    attempts = 0
    began, left = asyncio.Event(), asyncio.Event()

    async def script(request: GenerationRequest, *_: object) -> AsyncGenerator[GenerationEvent, None]:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            try:
                began.set()
                await asyncio.Event().wait()
            finally:
                left.set()
        assert left.is_set()
        for index in range(2):
            yield ImageDone(index, request.seed + index, PICTURE)

    async with opened(sqlite_url) as store:
        await store.create(new_job("job"))
        async with running(store, tmp_path, script, replace(SETTINGS, lease_s=DEAD)):
            await began.wait()
            assert (await claim_one(store, DEAD)).attempt == 2
            await until_state(store, JobState.SUCCEEDED)
        states = [(JobState.PROCESSING, attempt) for attempt in (1, 2, 3)]
        assert (await states_in_the_log(history))[1:] == [*states, (JobState.SUCCEEDED, 3)]


@in_loop
async def test_two_runners_that_race_run_each_job_once(url: str, tmp_path: Path, history: History) -> None:
    num_jobs = 200
    ids = [f"job-{number}" for number in range(num_jobs)]
    run: list[str] = []

    async def script(request: GenerationRequest, *_: object) -> AsyncGenerator[GenerationEvent, None]:
        run.append(request.request_id)
        await asyncio.sleep(0)
        yield ImageDone(0, request.seed, PICTURE)

    async with opened(url) as one, opened(url) as other:
        for job_id in ids:
            new = new_job(job_id)
            await one.create(replace(new, request=replace(new.request, num_images=1)))

        async def all_are_over() -> bool:
            counts = await counted(one)
            return counts[JobState.STARTING] + counts[JobState.PROCESSING] == 0

        settings = replace(SETTINGS, max_images=16)
        async with running(one, tmp_path, script, settings), running(other, tmp_path, script, settings):
            await until(all_are_over)
        assert sorted(run) == sorted(ids)
        once = [(JobState.STARTING, 0), (JobState.PROCESSING, 1), (JobState.SUCCEEDED, 1)]
        assert [await states_in_the_log(history, job_id) for job_id in ids] == [once] * num_jobs


@in_loop
async def test_an_image_that_is_done_counts_as_progress(sqlite_url: str, tmp_path: Path) -> None:
    """This also holds if it was too fast for a checkpoint."""
    seen = asyncio.Event()

    async def script(request: GenerationRequest, *_: object) -> AsyncGenerator[GenerationEvent, None]:
        yield ImageDone(0, request.seed, PICTURE)
        await seen.wait()
        yield ImageDone(1, request.seed + 1, PICTURE)

    async def has_an_image() -> bool:
        job = await store.get("job")
        return job is not None and bool(job.output)

    async with opened(sqlite_url) as store, running(store, tmp_path, script):
        await store.create(new_job("job"))
        await until(has_an_image)
        job = await store.get("job")
        assert job is not None
        assert (job.state, job.steps_done, job.num_steps) == (JobState.PROCESSING, 10, 20)
        seen.set()
        await until_state(store, JobState.SUCCEEDED)


@in_loop
async def test_a_receiver_that_hangs_holds_up_neither_jobs_nor_other_receivers(
    sqlite_url: str, tmp_path: Path
) -> None:
    """Its messages are more than there is room for at once, and are due first."""
    hung: list[str] = []
    told: list[str] = []
    is_over = asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        hung.append(request.path)
        await is_over.wait()
        return web.Response()

    async def answer(request: web.Request) -> web.Response:
        told.append((await request.json())["status"])
        return web.Response()

    app = web.Application()
    app.router.add_post("/hang", hang)
    app.router.add_post("/answer", answer)
    async with opened(sqlite_url) as store, TestServer(app, host="127.0.0.1") as server:
        hanging = Webhook(f"http://127.0.0.1:{server.port}/hang", frozenset(WebhookEvent))
        answering = Webhook(f"http://localhost:{server.port}/answer", frozenset({WebhookEvent.COMPLETED}))
        hooks = [hanging] * 40 + [answering] * 5
        for number, hook in enumerate(hooks):
            await store.create(new_job(f"job-{number}", webhook=hook))

        async def all_are_told() -> bool:
            return len(told) == 5

        try:
            async with running(store, tmp_path, both_images):
                await until(all_are_told)
                assert told == ["succeeded"] * 5
                assert (await counted(store))[JobState.SUCCEEDED] == len(hooks)
                assert hung
        finally:
            is_over.set()


@in_loop
async def test_a_job_is_begun_when_something_of_it_comes_and_not_while_it_waits(
    sqlite_url: str, tmp_path: Path
) -> None:
    its_turn = asyncio.Event()

    async def script(request: GenerationRequest, *_: object) -> AsyncGenerator[GenerationEvent, None]:
        yield PromptEncoded(TokenCount(3, 3), TokenCount(2, 2))
        await its_turn.wait()
        for index in range(2):
            yield ImageDone(index, request.seed + index, PICTURE)

    async def is_begun() -> bool:
        async with store.database.read() as connection:
            return bool((await connection.execute(select(jobs.c.is_begun))).scalar_one())

    async with opened(sqlite_url) as store:
        await store.create(new_job("job"))
        async with running(store, tmp_path, script):
            await until_state(store, JobState.PROCESSING)
            await asyncio.sleep(0.1)
            assert not await is_begun()
            its_turn.set()
            await until_state(store, JobState.SUCCEEDED)
            assert await is_begun()


@in_loop
async def test_what_is_old_is_deleted(sqlite_url: str, tmp_path: Path) -> None:
    async with opened(sqlite_url) as store:
        await store.create(new_job("job"))
        async with running(store, tmp_path, both_images):
            await until_state(store, JobState.SUCCEEDED)
        assert list((tmp_path / "images").glob("*/*"))
        no_retention = replace(SETTINGS, retention_s=0.0)
        async with running(store, tmp_path, both_images, no_retention):

            async def removed() -> bool:
                job = await store.get("job")
                return job is not None and job.data_removed

            await until(removed)
        job = await store.get("job")
        assert job is not None
        assert (job.output, job.input, job.request.prompt) == ({}, {}, "")
        assert not list((tmp_path / "images").glob("*/*"))


@in_loop
async def test_images_of_answers_are_deleted_by_their_age_alone(sqlite_url: str, tmp_path: Path) -> None:
    hour = replace(SETTINGS, answer_retention_s=3600.0)
    objects = ObjectStore(str(tmp_path))
    old, new = answer_key("image/png"), answer_key("image/png")
    for key in (old, new):
        await objects.put(key, PICTURE.data, "image/png", is_durable=False)
    an_hour_ago = time.time() - 3601
    os.utime(tmp_path / old, (an_hour_ago, an_hour_ago))

    async def deleted() -> bool:
        return not (tmp_path / old).exists()

    async with opened(sqlite_url) as store, running(store, tmp_path, both_images, hour):
        await until(deleted)
    assert (tmp_path / new).exists()


@in_loop
async def test_files_that_were_deleted_are_removed(sqlite_url: str, tmp_path: Path) -> None:
    async with opened(sqlite_url) as store:
        uploads = Uploads(store.database, ObjectStore(str(tmp_path)))
        deleted, kept = [await uploads.keep(NewFile("", name, "image/png", {}, b"bytes")) for name in "ab"]
        await uploads.delete(deleted.id, "")
        async with running(store, tmp_path, both_images):

            async def removed() -> bool:
                return not (tmp_path / deleted.key).exists()

            await until(removed)
        assert await uploads.get(kept.id, "") == kept
        assert (tmp_path / kept.key).read_bytes() == b"bytes"


@in_loop
async def test_however_much_is_old_goes_in_one_round(
    sqlite_url: str, tmp_path: Path, history: History
) -> None:
    """The next round is a minute later, so under load the rest would pile up."""
    num_jobs = 120
    async with opened(sqlite_url) as store:
        for number in range(num_jobs):
            await store.create(new_job(f"job-{number}"))

        async def succeeded() -> bool:
            return (await counted(store))[JobState.SUCCEEDED] == num_jobs

        async def forgotten() -> bool:
            return (await counted(store))[JobState.SUCCEEDED] == 0

        async with running(store, tmp_path, both_images, replace(SETTINGS, max_images=num_jobs)):
            await until(succeeded)
        assert len(list((tmp_path / "images").glob("*/*"))) == 2 * num_jobs
        at_once = replace(SETTINGS, retention_s=0.0, forget_after_s=0.0)
        async with running(store, tmp_path, both_images, at_once):
            await until(forgotten)
        assert not list((tmp_path / "images").iterdir())
        assert await store.get("job-0") is None
