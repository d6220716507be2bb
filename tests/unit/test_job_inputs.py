"""The pictures that jobs start from: on disk before their job is, and for as long as its images."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from sqlalchemy import update

from deployments.engine.messages import Picture
from serve.errors import JobStoreUnavailableError, ObjectStoreUnavailableError, StorageFullError
from serve.generation import GenerationEvent, GenerationRequest, HiresPass, ImageDone, StartPicture
from serve.jobs.database import Database
from serve.jobs.inputs import ABANDONED_S, JobInputs
from serve.jobs.job import Job, JobState, NewJob
from serve.jobs.objects import ObjectStore
from serve.jobs.store import JobStore
from serve.jobs.tables import job_inputs, now_s
from tests.job_stores import in_loop, new_job, opened
from tests.picture_files import QUARTERS, data_url, file_of, picture, quarters, right_half
from tests.unit.test_authentication import JOBS, serving
from tests.unit.test_edits_route import PNG, PROMPT, URL, prediction, stored
from tests.unit.test_job_runner import PICTURE, SETTINGS, running, until, until_state
from tests.unit.test_predictions_routes import database_in

PIXELS = np.asarray(picture())
START = StartPicture(
    sha256="0a" * 32, mask_sha256="0b" * 32, has_mask=True, height=64, width=96, crop=(8, 0, 72, 64)
)


def masked() -> Picture:
    image = picture()
    image.putalpha(right_half())
    return Picture(np.asarray(image), START.crop)


def with_picture(job_id: str, start: StartPicture = START, **changes: Any) -> NewJob:
    new = new_job(job_id)
    return replace(new, request=replace(new.request, start=start, strength=0.6, **changes))


async def grow_old(database: Database, *job_ids: str) -> None:
    old = update(job_inputs).where(job_inputs.c.job_id.in_(job_ids))
    async with database.write() as connection:
        await connection.execute(old.values(created_at=now_s() - ABANDONED_S - 1))


async def created(client: httpx.AsyncClient, headers: dict[str, str] | None = None, **given: Any) -> Any:
    answer = await client.post(JOBS, headers=headers, **prediction(**given))
    assert answer.status_code == 201, answer.text
    return answer.json()


@in_loop
async def test_a_picture_comes_back_as_it_was_kept(sqlite_url: str, tmp_path: Path) -> None:
    async with opened(sqlite_url) as store:
        inputs = JobInputs(store.database, ObjectStore(str(tmp_path)))
        await inputs.keep("plain", Picture(PIXELS))
        plain = await inputs.read("plain", replace(START, has_mask=False, crop=None))
        assert (plain.has_mask, plain.crop) == (False, None)
        assert np.array_equal(plain.pixels, PIXELS)
        await inputs.keep("masked", masked())
        both = await inputs.read("masked", START)
        assert (both.has_mask, both.crop) == (True, START.crop)
        assert np.array_equal(both.pixels, masked().pixels), "also under what the mask keeps"
        await inputs.delete("plain")
        await inputs.delete("plain")
    assert [path.name for path in (tmp_path / "inputs").iterdir()] == ["masked"]


@in_loop
async def test_a_picture_is_on_disk_before_its_job_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[list[str]] = []
    create = JobStore.create

    async def looking(self: JobStore, new: NewJob) -> Job:
        kept.append(stored(tmp_path))
        return await create(self, new)

    monkeypatch.setattr(JobStore, "create", looking)
    async with serving(tmp_path, []) as client, opened(database_in(tmp_path)) as store:
        job = await created(client, image=URL, mask=data_url(file_of(right_half())), prompt_strength=0.5)
        assert kept == [[f"inputs/{job['id']}/picture"]] == [stored(tmp_path)]
        of_store = await store.get(job["id"])
        assert of_store is not None
        start = of_store.request.start
        assert start is not None
        assert (start.has_mask, start.height, start.width, of_store.request.strength) == (True, 64, 96, 0.5)
        objects = ObjectStore(str(tmp_path / "objects"))
        read = await JobInputs(store.database, objects).read(job["id"], start)
        assert np.array_equal(read.pixels[..., :3], PIXELS)
        assert np.array_equal(read.pixels[..., 3], np.asarray(right_half()))
        await created(client)
        assert kept[1] == kept[0], "a job from a prompt alone has none"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (JobStoreUnavailableError("Away."), 503),
        (StorageFullError("No room."), 507),
    ],
)
@in_loop
async def test_a_picture_waits_for_a_runner_if_it_is_not_known_whether_its_job_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def create(*_: object) -> Job:
        assert stored(tmp_path) != []
        raise error

    async with serving(tmp_path, []) as client:
        with monkeypatch.context() as patched:
            patched.setattr(JobStore, "create", create)
            answer = await client.post(JOBS, **prediction(image=URL))
        [key] = stored(tmp_path)
        assert answer.status_code == status
        assert (await client.get(JOBS)).json()["results"] == []
        async with opened(database_in(tmp_path)) as store:
            inputs = JobInputs(store.database, ObjectStore(str(tmp_path / "objects")))
            await inputs.remove_abandoned()
            assert stored(tmp_path) == [key]
            await grow_old(store.database, key.split("/")[1])
            await inputs.remove_abandoned()
            assert stored(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "status"), [(StorageFullError("No room."), 507), (ObjectStoreUnavailableError("Away."), 503)]
)
@in_loop
async def test_there_is_no_job_whose_picture_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def put(*_: object, **__: object) -> None:
        raise error

    async with serving(tmp_path, []) as client:
        monkeypatch.setattr(ObjectStore, "put", put)
        answer = await client.post(JOBS, **prediction(image=URL))
        assert answer.status_code == status
        assert (await client.get(JOBS)).json()["results"] == []
        await created(client)


@in_loop
async def test_a_job_that_is_asked_for_again_has_one_picture(tmp_path: Path) -> None:
    key = {"idempotency-key": "the same"}
    async with serving(tmp_path, []) as client:
        ids = {(await created(client, key, image=URL))["id"] for _ in range(3)}
        [job_id] = ids
        assert stored(tmp_path) == [f"inputs/{job_id}/picture"]
        reused = await client.post(JOBS, headers=key, **prediction(image=URL, seed=1))
        assert (reused.status_code, reused.json()["error_type"]) == (422, "idempotency_key_reused")
        assert stored(tmp_path) == [f"inputs/{job_id}/picture"]


@in_loop
async def test_of_data_urls_only_the_beginning_is_shown(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        uploaded = await client.post("/v1/files", files={"content": ("a.png", PNG, "image/png")})
        own = uploaded.json()["urls"]["get"]
        job = await created(client, init_image=URL, mask=data_url(file_of(right_half())))
        given = (await client.get(f"{JOBS}/{job['id']}")).json()["input"]
        assert given == job["input"]
        assert given["prompt"] == PROMPT
        assert given["init_image"] == f"{URL[:64]}... ({len(URL)} characters)"
        assert given["mask"].startswith("data:image/png;base64,")
        assert len(given["mask"]) < 100
        assert (await created(client, image=own))["input"] == {"prompt": PROMPT, "image": own}


@in_loop
async def test_a_request_comes_out_of_the_database_as_it_went_in(url: str) -> None:
    hires = HiresPass(
        upscaler="latent",
        scale=1.5,
        height=96,
        width=96,
        latent_shape=(12, 12),
        strength=0.6,
        num_inference_steps=10,
        num_calls=6,
    )
    second_pass = new_job("second pass")
    async with opened(url) as store:
        for new in (
            with_picture("crop"),
            with_picture("plain", replace(START, crop=None, mask_sha256=None, has_mask=False)),
            replace(second_pass, request=replace(second_pass.request, hires=hires)),
        ):
            await store.create(new)
            job = await store.get(new.request.request_id)
            assert job is not None
            assert job.request == new.request


@in_loop
async def test_a_runner_starts_from_the_picture_and_deletes_it_with_the_images(
    sqlite_url: str, tmp_path: Path
) -> None:
    seen: list[Picture] = []

    async def script(
        request: GenerationRequest, picture: Any, *_: object
    ) -> AsyncGenerator[GenerationEvent, None]:
        seen.append(picture)
        for index in range(request.num_images):
            yield ImageDone(index, request.seed + index, PICTURE)

    async with opened(sqlite_url) as store:
        await JobInputs(store.database, ObjectStore(str(tmp_path))).keep("job", masked())
        await store.create(with_picture("job"))
        async with running(store, tmp_path, script):
            await until_state(store, JobState.SUCCEEDED)
        [picture] = seen
        assert np.array_equal(picture.pixels, masked().pixels)
        assert picture.crop == START.crop
        assert (tmp_path / "inputs/job/picture").exists(), "it is kept as long as the images are"

        async def removed() -> bool:
            job = await store.get("job")
            return job is not None and job.data_removed

        async with running(store, tmp_path, script, replace(SETTINGS, retention_s=0.0)):
            await until(removed)
        assert not (tmp_path / "inputs/job").exists()
        assert not (tmp_path / "images/job").exists()


@in_loop
async def test_a_job_fails_whose_picture_is_gone(sqlite_url: str, tmp_path: Path) -> None:
    async def script(*_: object) -> AsyncGenerator[GenerationEvent, None]:
        raise AssertionError("there is nothing to start from")
        yield

    async with opened(sqlite_url) as store, running(store, tmp_path, script):
        await store.create(with_picture("job"))
        await until_state(store, JobState.FAILED)
        job = await store.get("job")
        assert job is not None
        assert job.error == "The picture to start from is no longer there."


class AwayAtFirst(ObjectStore):
    """Cannot be reached at first."""

    refusals = 3

    async def read(self, key: str) -> bytes:
        if self.refusals:
            self.refusals -= 1
            raise ObjectStoreUnavailableError("Away.")
        return await super().read(key)


@in_loop
async def test_a_job_waits_for_its_picture(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.jobs.rounds._AWAY_INTERVAL_S", 0.01)

    async def script(
        request: GenerationRequest, picture: Any, *_: object
    ) -> AsyncGenerator[GenerationEvent, None]:
        assert quarters(Image.fromarray(picture.pixels[..., :3])) == QUARTERS
        for index in range(request.num_images):
            yield ImageDone(index, request.seed + index, PICTURE)

    async with opened(sqlite_url, max_attempts=1) as store:
        await JobInputs(store.database, ObjectStore(str(tmp_path))).keep("job", masked())
        await store.create(with_picture("job"))
        async with running(store, tmp_path, script, kind=AwayAtFirst) as objects:
            await until_state(store, JobState.SUCCEEDED)
        assert isinstance(objects, AwayAtFirst)
        assert objects.refusals == 0


@in_loop
async def test_pictures_without_a_job_are_deleted_when_they_are_old(sqlite_url: str, tmp_path: Path) -> None:
    async def waiting(*_: object) -> AsyncGenerator[GenerationEvent, None]:
        raise ObjectStoreUnavailableError("Away.")
        yield

    async def removed() -> bool:
        return not any((tmp_path / "inputs" / job_id).exists() for job_id in ("abandoned", "too"))

    async with opened(sqlite_url) as store:
        inputs = JobInputs(store.database, ObjectStore(str(tmp_path)))
        for job_id in ("abandoned", "too", "young", "old"):
            await inputs.keep(job_id, masked())
        await grow_old(store.database, "abandoned", "too", "old")
        # Of another application, with a database of its own.
        await ObjectStore(str(tmp_path)).put("inputs/another/picture", b"a picture")
        await store.create(with_picture("old"))
        async with running(store, tmp_path, waiting):
            await until(removed)
        assert sorted(path.name for path in (tmp_path / "inputs").iterdir()) == ["another", "old", "young"]
