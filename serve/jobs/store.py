"""The job store as clients see it. Runners use its `queue`, and `housekeeping` runs by time."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select, update

from serve.jobs.changes import Changes
from serve.jobs.conditions import lease_ran_out, unfinished, waiting
from serve.jobs.creations import Creations, find_by_key
from serve.jobs.database import Database, uninterrupted
from serve.jobs.housekeeping import Housekeeping
from serve.jobs.job import IdempotencyKey, Job, JobState, NewJob
from serve.jobs.news import Audience, News, news_or_timeout
from serve.jobs.outbox import Outbox
from serve.jobs.pages import Page, read_page
from serve.jobs.queue import JobQueue
from serve.jobs.records import Look, UnderWay, read_job
from serve.jobs.tables import jobs, now_s

_FOLLOW_INTERVAL_S = 1.0  # how late a change may be seen without news

_c = jobs.c


class JobStore:
    """The accepted jobs, on SQLite or PostgreSQL. Any number of processes may have it open at once.

    Several applications may share one: each runs the jobs of its own models. They must share one object
    store, one retention time and one set of webhook secrets, since any of them cleans up and sends webhooks.
    Clients see only the jobs of their owner. All times are the database's.

    All methods may raise JobStoreUnavailableError and StorageFullError. Then nothing of the change is
    written, and the store works again as soon as the database does.

    describe: a job as webhooks get it; if it fails, the change that it reports fails too
    models: the models that this application serves, by the names in its jobs
    max_attempts: how often in a row a job may fail, or its runner die after beginning it, without progress
    event_interval_s: shortest time between a webhook's messages about output, and about logs; events in
        between are left out
    """

    def __init__(
        self,
        url: str,
        describe: Callable[[Job], Mapping[str, Any]],
        models: Collection[str],
        max_attempts: int = 3,
        event_interval_s: float = 0.5,
    ) -> None:
        self.database = Database(url)
        self.news = News(self.database)
        self.outbox = Outbox(self.database, describe)
        self.models = models
        self._changes = Changes(self.database, self.outbox, self.news)
        self._creations = Creations(self.database, self._changes)
        self.housekeeping = Housekeeping(self.database, self._changes, max_attempts)
        self.queue = JobQueue(self.database, self._changes, models, max_attempts, event_interval_s)

    async def open(self) -> None:
        await self.database.open()
        self.news.start()

    async def close(self) -> None:
        await self.news.stop()
        await self.database.close()

    @uninterrupted
    async def create(self, new: NewJob) -> Job:
        """Creates a job, on disk when this returns. For a known idempotency key, returns that key's job.

        Raises IdempotencyKeyReusedError if that job had another payload.
        """
        return await self._creations.create(new)

    @uninterrupted
    async def with_key(self, owner: str, key: IdempotencyKey) -> Job | None:
        """The job that was created with this key; None if there is none.

        Raises IdempotencyKeyReusedError if that job had another payload.
        """
        async with self.database.read() as connection:
            return await find_by_key(connection, owner, key)

    @uninterrupted
    async def get(self, job_id: str, owner: str = "") -> Job | None:
        """The job; None if the owner has no such job."""
        statement = select(jobs).where(_c.id == job_id, _seen_by(owner))
        async with self.database.read() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else read_job(row)

    @uninterrupted
    async def find(self, job: Job) -> Job | None:
        """The job as it is now, even if its client has deleted it; None if it is forgotten."""
        async with self.database.read() as connection:
            row = (await connection.execute(select(jobs).where(_c.id == job.id))).one_or_none()
        return None if row is None else read_job(row)

    async def follow(self, job: Job) -> AsyncGenerator[Job, None]:
        """The job as it is now, and again whenever it may have changed, until it is over.

        A job that is deleted meanwhile is over: it was finished, or deleting it has canceled it.
        """
        changed = asyncio.Event()
        with self.news.listening(Audience.CLIENTS, changed):
            yield job
            while not job.state.is_final:
                await news_or_timeout(changed, _FOLLOW_INTERVAL_S)
                job = await self.find(job) or job
                yield job

    @uninterrupted
    async def page(self, limit: int, cursor: str | None = None, owner: str = "") -> Page[Job]:
        """A page of jobs, newest first. cursor: `next` or `previous` of another page

        Raises InvalidRequestError if it is not a cursor.
        """
        async with self.database.read() as connection:
            return await read_page(connection, jobs, _seen_by(owner), read_job, limit, cursor)

    @uninterrupted
    async def queue_position(self, job: Job) -> int | None:
        """Number of jobs of its model that begin before it if nothing changes; None if it has begun."""
        if job.state is not JobState.STARTING:
            return None
        priority = job.request.priority
        seq = select(_c.seq).where(_c.id == job.id).scalar_subquery()
        is_before = or_(_c.priority > priority, and_(_c.priority == priority, _c.seq < seq))
        statement = select(func.count()).where(waiting, _c.model == job.model, is_before)
        async with self.database.read() as connection:
            return (await connection.execute(statement)).scalar_one()

    @uninterrupted
    async def look(self, running: Collection[str] = (), busy_hosts: Collection[str] = ()) -> Look:
        """The work that waits for a runner, in one read without a lock.

        running: ids of the runner's own jobs; busy_hosts: leaves their webhooks for later
        """
        statement = select(
            self.queue.is_waiting(running),
            self.housekeeping.is_needed(running),
            self.outbox.is_due(busy_hosts),
        )
        async with self.database.read() as connection:
            return Look(*map(bool, (await connection.execute(statement)).one()))

    @uninterrupted
    async def under_way(self) -> UnderWay:
        """The jobs that keep this application's devices busy."""
        is_ours = and_(unfinished, _c.model.in_(self.models))
        held = and_(is_ours, _c.lease_until >= now_s())
        free = select(_c.seq).where(is_ours, or_(_c.state == JobState.STARTING, lease_ran_out))
        async with self.database.read() as connection:
            rows = (await connection.execute(select(jobs).where(held))).all()
            is_more_waiting = (await connection.execute(select(free.exists()))).scalar_one()
        return UnderWay([read_job(row) for row in rows], bool(is_more_waiting))

    @uninterrupted
    async def cancel(self, job_id: str, owner: str = "") -> Job | None:
        """Cancels at once, begun or not. A finished job stays as it is. None if the owner has no such job."""
        is_it = and_(_c.id == job_id, _seen_by(owner))
        async with self._changes.begin() as transaction:
            canceled = await transaction.transition(JobState.CANCELED, is_it)
            if canceled:
                return canceled[0]
            row = (await transaction.connection.execute(select(jobs).where(is_it))).one_or_none()
        return None if row is None else read_job(row)

    @uninterrupted
    async def delete(self, job_id: str, owner: str = "") -> bool:
        """Deletes a job for its owner; it is canceled if it is not finished. False if there is no such job.

        Its idempotency key is free again. Housekeeping deletes its data soon.
        """
        is_it = and_(_c.id == job_id, _seen_by(owner))
        deletion = (
            update(jobs)
            .where(is_it)
            .values(is_deleted=True, idempotency_key=None, fingerprint=None)
            .returning(_c.id)
        )
        async with self._changes.begin() as transaction:
            await transaction.transition(JobState.CANCELED, is_it, reason="Its client has deleted it.")
            return bool((await transaction.connection.execute(deletion)).all())


def _seen_by(owner: str) -> ColumnElement[bool]:
    return and_(_c.owner == owner, _c.is_deleted.is_(False))
