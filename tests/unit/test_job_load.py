"""The ingress replicas' knowledge of the jobs' load on the denoisers."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from deployments.engine.model_source import load_model_info
from serve.capacity.admission import JobsWork
from serve.capacity.config_problems import crowding_problem
from serve.config.app import AppConfig
from serve.errors import JobStoreUnavailableError
from serve.jobs.load import JobLoad
from serve.jobs.records import UnderWay
from serve.jobs.store import JobStore
from tests.job_stores import JOB_WORK_S, LONG, claim_one, in_loop, new_job, opened
from tests.unit.test_admission import COST

TIMEOUT_S = 20.0


@asynccontextmanager
async def watched(store: JobStore, num_ingresses: int = 1) -> AsyncIterator[JobLoad]:
    load = JobLoad(store, lambda: num_ingresses, lambda request: request.work_s)
    watching = asyncio.create_task(load.watch())
    try:
        yield load
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def until(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not seen():  # noqa: ASYNC110  (it is looked up once a second)
            await asyncio.sleep(0.01)


async def away() -> UnderWay:
    raise JobStoreUnavailableError("its database is away")


@in_loop
async def test_what_is_left_of_jobs_under_way_is_shared_by_the_ingresses(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path / 'jobs.sqlite'}") as store:
        for job_id in "abc":
            await store.create(new_job(job_id))
        async with watched(store) as alone, watched(store, num_ingresses=2) as one_of_two:
            await until(lambda: alone.share().is_refilled)
            assert alone.share().work_s == 0.0, "nobody has begun them"
            first = await claim_one(store)
            await store.queue.claim(1, LONG)
            await until(lambda: alone.share().rows > 0)
            assert alone.share() == JobsWork(8, pytest.approx(2 * JOB_WORK_S), is_refilled=True)
            await until(lambda: one_of_two.share().rows > 0)
            assert one_of_two.share() == JobsWork(4, pytest.approx(JOB_WORK_S), is_refilled=True)
            # One image of the first job and two steps of the other.
            assert await store.queue.record_image(first, 0, "key", 12)
            await until(lambda: alone.share().rows < 8)
            assert alone.share() == JobsWork(6, pytest.approx(1.4 * JOB_WORK_S), is_refilled=True)
            await store.queue.claim(1, LONG)
            await until(lambda: not alone.share().is_refilled)


@in_loop
async def test_the_last_known_counts_while_the_database_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(f"sqlite:///{tmp_path / 'jobs.sqlite'}") as store:
        await store.create(new_job("a"))
        async with watched(store) as load:
            await until(lambda: load.share().is_refilled)
            with monkeypatch.context() as broken:
                broken.setattr(store, "under_way", away)
                await claim_one(store)
                await until(lambda: "what jobs are under way could not be read" in caplog.text)
                assert load.share() == JobsWork(is_refilled=True)
            await until(lambda: load.share().rows > 0)


@pytest.mark.parametrize(
    ("jobs", "max_replicas", "told"),
    [
        ({}, 1, None),
        ({"max_running_images": 50}, 1, r"50 images .* busy for 50 s"),
        ({"max_running_images": 50}, 2, None),
        ({"max_running_images": 25, "num_runners": 2}, 1, r"50 images .* busy for 50 s"),
    ],
)
def test_jobs_that_leave_no_room_for_requests_are_told_of(
    jobs: dict[str, Any], max_replicas: int, told: str | None
) -> None:
    """An image is 10 calls of two rows, each a sixteenth of 0.8 s: a second of work."""
    config = AppConfig.model_validate(
        {
            "denoiser": {
                "max_rows": 16,
                "rows_per_forward": 16,
                "max_replicas": max_replicas,
            },
            "defaults": {"num_inference_steps": 10},
            "limits": {"max_wait_s": 40},
            "jobs": jobs,
        }
    )
    problem = crowding_problem(config, load_model_info(config.model.source()), COST)
    assert problem is None if told is None else re.search(told, problem or "")
