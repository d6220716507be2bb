"""The runner: what comes of a job, however its attempts end. The pipeline is scripted, the rest is real."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select

from deployments.engine.messages import Checkpoint, EncodedImage
from serve.errors import GenerationFailedError, PoisonousRequestError, StorageFullError
from serve.generation import (
    GenerationEvent,
    GenerationRequest,
    ImageDone,
    ImageProgress,
    PromptEncoded,
    Resume,
)
from serve.jobs.job import JobState
from serve.jobs.objects import ObjectStore
from serve.jobs.runner import JobRunner, RunnerSettings
from serve.jobs.store import JobStore
from serve.jobs.tables import jobs
from serve.jobs.webhooks import WebhookSender, new_secret
from tests.job_stores import DEAD, LONG, in_loop, new_job, opened, state_of, states_of

Script = Callable[[GenerationRequest, Resume], AsyncGenerator[GenerationEvent, None]]
PICTURE = EncodedImage(b"a picture", "image/png", 64, 64)
SETTINGS = RunnerSettings(
    max_images=4, lease_s=LONG, poll_interval_s=0.01, retention_s=LONG, forget_after_s=LONG
)
TIMEOUT_S = 20.0


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint("somebody", step, step, torch.full((1, 2, 3), float(step)))


def failing(error: Exception) -> Script:
    async def script(*_: object) -> AsyncGenerator[GenerationEvent, None]:
        raise error
        yield

    return script


@asynccontextmanager
async def running(
    store: JobStore, folder: Path, script: Script, settings: RunnerSettings = SETTINGS
) -> AsyncIterator[ObjectStore]:
    objects = ObjectStore(str(folder))
    async with WebhookSender([new_secret()], allow_private=True) as webhooks:
        task = asyncio.create_task(JobRunner(store, objects, webhooks, script, settings).run())
        try:
            yield objects
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], Any]) -> None:
    """Until what must come true has come."""
    async with asyncio.timeout(TIMEOUT_S):
        while not await condition():  # noqa: ASYNC110  (of a database: there is nothing to be told by)
            await asyncio.sleep(0.01)


async def until_state(store: JobStore, state: JobState, job_id: str = "job") -> None:
    async def reached() -> bool:
        return await state_of(store, job_id) is state

    await until(reached)


async def both_images(request: GenerationRequest, _: Resume) -> AsyncGenerator[GenerationEvent, None]:
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

    async def script(_: GenerationRequest, resume: Resume) -> AsyncGenerator[GenerationEvent, None]:
        asked.append(resume)
        if len(asked) == 1:
            yield ImageDone(1, 8, PICTURE)
            yield ImageProgress(0, checkpoint(3))
            began.set()
            await asyncio.Event().wait()
        yield ImageDone(0, 7, PICTURE)

    async with opened(sqlite_url) as store:
        await store.create(new_job("job"))
        async with running(store, tmp_path, script):
            await began.wait()
        assert await state_of(store, "job") is JobState.STARTING, "a runner that stops gives back"
        async with running(store, tmp_path, script):
            await until_state(store, JobState.SUCCEEDED)
        assert asked[1].done == {1}
        assert asked[1].checkpoints[0].row == 3
        assert torch.equal(asked[1].checkpoints[0].state, checkpoint(3).state)
        assert not list((tmp_path / "checkpoints").glob("*/*")), "what nobody needs any more is deleted"
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
async def test_a_poisonous_job_has_one_attempt(sqlite_url: str, tmp_path: Path) -> None:
    script = failing(PoisonousRequestError("2 replicas have died of this request."))
    async with opened(sqlite_url) as store, running(store, tmp_path, script):
        await store.create(new_job("job"))
        await until_state(store, JobState.FAILED)
        states = await states_of(store, "job")
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
    monkeypatch.setattr("serve.jobs.runner._AWAY_INTERVAL_S", 0.01)
    made = []

    async def script(request: GenerationRequest, _: Resume) -> AsyncGenerator[GenerationEvent, None]:
        made.append(request.request_id)
        for index in range(2):
            yield ImageDone(index, 7 + index, PICTURE)

    async with opened(sqlite_url) as store, WebhookSender([new_secret()], allow_private=True) as webhooks:
        objects = FullDisk(str(tmp_path))
        task = asyncio.create_task(JobRunner(store, objects, webhooks, script, SETTINGS).run())
        await store.create(new_job("job"))
        await until_state(store, JobState.SUCCEEDED)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert made == ["job"]
        assert objects.refusals == 0


@in_loop
async def test_no_more_is_claimed_than_there_is_room_for(sqlite_url: str, tmp_path: Path) -> None:
    """Of jobs of two images each, two have room in a runner of four."""
    gate = asyncio.Event()

    async def script(request: GenerationRequest, _: Resume) -> AsyncGenerator[GenerationEvent, None]:
        await gate.wait()
        for index in range(2):
            yield ImageDone(index, request.seed + index, PICTURE)

    async with opened(sqlite_url) as store:
        for number in range(5):
            await store.create(new_job(f"job-{number}"))
        async with running(store, tmp_path, script):

            async def two_have_begun() -> bool:
                return (await store.counts())[JobState.PROCESSING] == 2

            await until(two_have_begun)
            await asyncio.sleep(0.1)
            assert (await store.counts())[JobState.PROCESSING] == 2
            gate.set()
            for number in range(5):
                await until_state(store, JobState.SUCCEEDED, f"job-{number}")


@in_loop
async def test_a_runner_that_lost_a_job_may_take_it_up_again(sqlite_url: str, tmp_path: Path) -> None:
    """Its lease ran out and it was the first to see that: the later of its attempts is what counts."""
    attempts = 0
    left = asyncio.Event()

    async def script(request: GenerationRequest, _: Resume) -> AsyncGenerator[GenerationEvent, None]:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            try:
                await asyncio.Event().wait()
            finally:
                left.set()
        await left.wait()
        for index in range(2):
            yield ImageDone(index, request.seed + index, PICTURE)

    no_lease = RunnerSettings(
        max_images=4, lease_s=DEAD, poll_interval_s=0.01, retention_s=LONG, forget_after_s=LONG
    )
    async with opened(sqlite_url, max_attempts=1000) as store:
        await store.create(new_job("job"))
        async with running(store, tmp_path, script, no_lease):
            async with asyncio.timeout(TIMEOUT_S):
                await left.wait()
        async with running(store, tmp_path, script):
            await until_state(store, JobState.SUCCEEDED)


@in_loop
async def test_a_job_is_begun_when_something_of_it_comes_and_not_while_it_waits(
    sqlite_url: str, tmp_path: Path
) -> None:
    its_turn = asyncio.Event()

    async def script(request: GenerationRequest, _: Resume) -> AsyncGenerator[GenerationEvent, None]:
        yield PromptEncoded(3, 2, 77)
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
        no_retention = RunnerSettings(4, LONG, 0.01, retention_s=0.0, forget_after_s=LONG)
        async with running(store, tmp_path, both_images, no_retention):

            async def removed() -> bool:
                job = await store.get("job")
                return job is not None and job.data_removed

            await until(removed)
        job = await store.get("job")
        assert job is not None
        assert (job.output, job.input, job.request.prompt) == ({}, {}, "")
        assert not list((tmp_path / "images").glob("*/*"))
