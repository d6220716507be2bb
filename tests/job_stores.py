"""What tests of the job store have in common."""

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from deployments.engine.messages import ImageFormat
from serve.jobs.job import IdempotencyKey, Job, JobState, NewJob, Webhook, WebhookEvent
from serve.jobs.records import Claim
from serve.jobs.store import JobStore
from tests.generation_requests import generation_request

# A lease that has run out as soon as it is given: that of a runner that dies at once.
DEAD = -1.0
LONG = 3600.0
JOB_WORK_S = 4.0  # of a job of new_job: two images of ten steps


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))  # type: ignore[arg-type]

    return run


def describe(job: Job) -> Mapping[str, Any]:
    return {"id": job.id, "status": job.state, "steps": job.steps_done, "output": list(job.output.values())}


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[JobStore]:
    store = JobStore(url, **({"describe": describe} | settings))
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def new_job(job_id: str, priority: int = 0, key: IdempotencyKey | None = None, **changes: Any) -> NewJob:
    request = generation_request(
        job_id,
        height=64,
        width=64,
        num_images=2,
        image_format=ImageFormat("image/webp", 80),
        priority=priority,
        work_s=JOB_WORK_S,
    )
    new = NewJob(
        request,
        input={"prompt": "a red star"},
        base_url="http://localhost:8000",
        idempotency_key=key,
    )
    return replace(new, **changes)


def webhook(*events: WebhookEvent) -> Webhook:
    return Webhook("https://example.com/hook", frozenset(events or WebhookEvent))


async def claim_one(store: JobStore, lease_s: float = LONG) -> Claim:
    [job] = await store.claim(1, lease_s)
    return Claim.of(job)


async def state_of(store: JobStore, job_id: str) -> JobState:
    job = await store.get(job_id)
    assert job is not None
    return job.state


async def states_of(store: JobStore, job_id: str) -> list[tuple[JobState, int]]:
    return [(transition.state, transition.attempt) for transition in await store.history(job_id)]


async def told(store: JobStore) -> list[tuple[str, WebhookEvent, Any]]:
    """Takes everything out of the outbox: job, event and payload, in order."""
    deliveries = await store.outbox.due_deliveries(1000, LONG)
    for delivery in deliveries:
        await store.outbox.delivered(delivery)
    return [(delivery.job_id, delivery.event, json.loads(delivery.payload)) for delivery in deliveries]
