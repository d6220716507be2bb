"""Fixtures that tests of the job store share."""

import asyncio
import functools
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import func, select

from deployments.engine.messages import ImageFormat
from serve.jobs.job import IdempotencyKey, Job, JobState, NewJob, Webhook, WebhookEvent
from serve.jobs.records import Claim
from serve.jobs.store import JobStore
from serve.jobs.tables import jobs
from tests.generation_requests import generation_request

# A lease that has expired as soon as it is given, like that of a runner that dies at once.
DEAD = -1.0
LONG = 3600.0
JOB_WORK_S = 4.0  # of a job of new_job: two images of ten steps
MODEL = "shapes"


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))  # type: ignore[arg-type]

    return run


def describe(job: Job) -> Mapping[str, Any]:
    return {"id": job.id, "status": job.state, "steps": job.steps_done, "output": list(job.output.values())}


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[JobStore]:
    store = JobStore(url, **({"describe": describe, "models": [MODEL]} | settings))
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def new_job(
    job_id: str, priority: int = 0, key: IdempotencyKey | None = None, model: str = MODEL, **changes: Any
) -> NewJob:
    request = generation_request(
        job_id,
        model=model,
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
    [job] = await store.queue.claim(1, lease_s)
    return Claim.of(job)


async def state_of(store: JobStore, job_id: str) -> JobState:
    job = await store.get(job_id)
    assert job is not None
    return job.state


async def counted(store: JobStore) -> Counter[JobState]:
    """The number of jobs in each state."""
    statement = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    async with store.database.read() as connection:
        rows = (await connection.execute(statement)).all()
    return Counter({JobState(state): number for state, number in rows})


@dataclass(frozen=True, slots=True)
class Transition:
    """A job's change of state. reason: if it is an unusual one"""

    state: JobState
    attempt: int
    reason: str | None


class History(logging.Handler):
    """The states of jobs, read from the log, in the order of fencing tokens.

    Lines of two processes have no order, nor have lines of two transactions that end together.
    """

    _LINE = re.compile(r"job (.+) is (\w+), attempt (\d+)(?:: (.+))?")

    def __init__(self) -> None:
        super().__init__()
        self._of = defaultdict[str, list[Transition]](list)

    def emit(self, record: logging.LogRecord) -> None:
        if match := self._LINE.fullmatch(record.getMessage()):
            job_id, state, attempt, reason = match.groups()
            self._of[job_id].append(Transition(JobState(state), int(attempt), reason))

    def of(self, job_id: str) -> list[Transition]:
        ranks = {JobState.PROCESSING: 0, JobState.STARTING: 1}
        return sorted(self._of[job_id], key=lambda one: (one.attempt, ranks.get(one.state, 2)))

    def states(self, job_id: str) -> list[tuple[JobState, int]]:
        return [(transition.state, transition.attempt) for transition in self.of(job_id)]


@contextmanager
def recorded() -> Iterator[History]:
    logger, history = logging.getLogger("ray.serve"), History()
    level = logger.level
    logger.addHandler(history)
    logger.setLevel(logging.INFO)
    try:
        yield history
    finally:
        logger.removeHandler(history)
        logger.setLevel(level)


async def told(store: JobStore) -> list[tuple[str, WebhookEvent, Any]]:
    """Takes all messages out of the outbox: job, event and payload, in order."""
    deliveries = await store.outbox.due_deliveries(1000, LONG)
    for delivery in deliveries:
        await store.outbox.delivered(delivery)
    return [(delivery.job_id, delivery.event, json.loads(delivery.payload)) for delivery in deliveries]
