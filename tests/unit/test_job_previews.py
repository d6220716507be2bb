"""Previews of jobs: stored and recorded while a job runs, and gone when it is over."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.engine.messages import EncodedImage
from serve.errors import GenerationFailedError, ObjectStoreUnavailableError
from serve.generation import GenerationEvent, GenerationRequest, ImageDone, ImagePreview
from serve.jobs.job import Job, JobState, NewJob, StoredPreview
from serve.jobs.objects import ObjectStore, preview_key
from serve.jobs.records import Claim, Progress
from serve.jobs.store import JobStore
from tests.job_stores import DEAD, claim_one, in_loop, new_job, opened
from tests.unit.test_job_runner import PICTURE, running, until, until_state


def preview(image_index: int, preview_index: int, step: int) -> ImagePreview:
    image = EncodedImage(f"{image_index} after {step}".encode(), "image/jpeg", 64, 64)
    return ImagePreview(image_index, preview_index, step, image)


def stored(image_index: int, preview_index: int, step: int) -> StoredPreview:
    return StoredPreview(preview_index, step, preview_key("job", image_index, preview_index, "image/jpeg"))


def job_with_previews() -> NewJob:
    new = new_job("job")
    return replace(new, request=replace(new.request, num_previews=4))


async def job_of(store: JobStore) -> Job:
    job = await store.get("job")
    assert job is not None
    return job


class Scripted:
    """A pipeline that sends these events, waits until it may go on, and then ends."""

    def __init__(self, *events: GenerationEvent, error: Exception | None = None) -> None:
        self.may_end = asyncio.Event()
        self._events = events
        self._error = error

    async def __call__(self, request: GenerationRequest, *_: object) -> AsyncGenerator[GenerationEvent, None]:
        for event in self._events:
            yield event
        await self.may_end.wait()
        if self._error:
            raise self._error
        for index in (1, 0):
            yield ImageDone(index, request.seed + index, PICTURE)


@asynccontextmanager
async def under_way(
    url: str, folder: Path, script: Scripted, expected: dict[int, StoredPreview]
) -> AsyncIterator[JobStore]:
    """A job that has these previews."""
    async with opened(url) as store, running(store, folder, script):
        await store.create(job_with_previews())

        async def are_recorded() -> bool:
            return (await job_of(store)).previews == expected

        await until(are_recorded)
        yield store


def previews_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "previews").glob("*/*")}


async def until_they_are_gone(folder: Path) -> None:
    async def are_gone() -> bool:
        return not previews_in(folder)

    await until(are_gone)


@in_loop
async def test_the_latest_previews_are_recorded_and_gone_with_success(
    sqlite_url: str, tmp_path: Path
) -> None:
    script = Scripted(preview(0, 0, 2), preview(1, 0, 2), preview(0, 1, 4))
    expected = {0: stored(0, 1, 4), 1: stored(1, 0, 2)}
    async with under_way(sqlite_url, tmp_path, script, expected) as store:
        job = await job_of(store)
        assert job.steps_done == 6, "a preview tells of steps too"
        assert previews_in(tmp_path)["0-1.jpg"] == b"0 after 4"
        script.may_end.set()
        await until_state(store, JobState.SUCCEEDED)
        assert (await job_of(store)).previews == {}
        await until_they_are_gone(tmp_path)


@in_loop
async def test_they_are_gone_when_the_job_fails(sqlite_url: str, tmp_path: Path) -> None:
    script = Scripted(preview(0, 0, 2), error=GenerationFailedError("A stage failed."))
    async with under_way(sqlite_url, tmp_path, script, {0: stored(0, 0, 2)}) as store:
        script.may_end.set()
        await until_state(store, JobState.FAILED)
        await until_they_are_gone(tmp_path)


@in_loop
async def test_they_are_gone_when_the_job_is_canceled(sqlite_url: str, tmp_path: Path) -> None:
    script = Scripted(preview(0, 0, 2))
    async with under_way(sqlite_url, tmp_path, script, {0: stored(0, 0, 2)}) as store:
        await store.cancel("job")
        await until_they_are_gone(tmp_path)


@in_loop
async def test_another_runner_goes_on_with_them(sqlite_url: str, tmp_path: Path) -> None:
    """What comes again is not kept again, and what is new has the next number."""
    first = Scripted(preview(0, 0, 2), preview(0, 1, 4))
    second = Scripted(preview(0, 0, 4), preview(0, 1, 6))
    async with under_way(sqlite_url, tmp_path, first, {0: stored(0, 1, 4)}):
        pass
    assert sorted(previews_in(tmp_path)) == ["0-0.jpg", "0-1.jpg"]
    async with opened(sqlite_url) as store, running(store, tmp_path, second):

        async def goes_on() -> bool:
            return (await job_of(store)).previews == {0: stored(0, 2, 6)}

        await until(goes_on)
        assert previews_in(tmp_path)["0-1.jpg"] == b"0 after 4"


class WithoutRoomForPreviews(ObjectStore):
    refusals = 0

    async def put(
        self,
        key: str,
        data: bytes,
        media_type: str = "application/octet-stream",
        is_durable: bool = True,
    ) -> None:
        if key.startswith("previews/"):
            self.refusals += 1
            raise ObjectStoreUnavailableError("The object store cannot be reached, or refuses us.")
        await super().put(key, data, media_type, is_durable)


@in_loop
async def test_a_job_does_not_wait_for_its_previews(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = Scripted(preview(0, 0, 2), preview(0, 1, 4))
    script.may_end.set()
    async with opened(sqlite_url) as store:
        await store.create(job_with_previews())
        async with running(store, tmp_path, script, kind=WithoutRoomForPreviews) as objects:
            await until_state(store, JobState.SUCCEEDED)
        assert isinstance(objects, WithoutRoomForPreviews)
        assert objects.refusals == 2
        assert (await job_of(store)).attempt == 1
    assert "job job: a preview was not stored" in caplog.text


@in_loop
async def test_of_a_job_the_store_keeps_the_previews_of_unfinished_images(url: str) -> None:
    both = {0: stored(0, 0, 2), 1: stored(1, 0, 2)}
    async with opened(url) as store:
        await store.create(job_with_previews())
        first = await claim_one(store, DEAD)
        assert await store.queue.record_progress({first: Progress(4, both)}) == {"job"}
        assert (await job_of(store)).previews == both
        [job] = await store.queue.claim(1, 60.0)
        assert job.previews == both, "the next runner goes on from them"
        second = Claim.of(job)
        assert await store.queue.record_progress({first: Progress(8, {0: stored(0, 9, 4)})}) == set()
        await store.queue.record_progress({second: Progress(8, {0: stored(0, 1, 4)})})
        assert (await job_of(store)).previews == {0: stored(0, 1, 4), 1: stored(1, 0, 2)}
        await store.queue.record_image(second, 0, "images/job/0.png", 12)
        assert (await job_of(store)).previews == {1: stored(1, 0, 2)}
        await store.queue.record_progress({second: Progress(14, {0: stored(0, 2, 6)})})
        assert (await job_of(store)).previews == {1: stored(1, 0, 2)}, "it came late"
        await store.cancel("job")
        assert (await job_of(store)).previews == {}
