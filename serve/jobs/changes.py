"""Changes jobs in one transaction with their webhook messages, and then tells the log and the listeners."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import ColumnElement, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.jobs.database import Database
from serve.jobs.job import TRANSITIONS, Job, JobState, WebhookEvent
from serve.jobs.news import Audience, News
from serve.jobs.outbox import Outbox
from serve.jobs.records import read_job
from serve.jobs.tables import jobs, now_s

logger = logging.getLogger("ray.serve")


class Changes:
    """Begins the transactions in which jobs change."""

    def __init__(self, database: Database, outbox: Outbox, news: News) -> None:
        self._database = database
        self._outbox = outbox
        self._news = news

    @asynccontextmanager
    async def begin(self) -> AsyncIterator["Transaction"]:
        async with self._database.write() as connection:
            transaction = Transaction(connection, self._outbox)
            yield transaction
            await self._news.announce(connection, transaction.audiences)
        for job, reason in transaction.changed:
            because = f": {reason}" if reason else ""
            logger.info("job %s is %s, attempt %d%s", job.id, job.state, job.attempt, because)


class Transaction:
    """connection: for the statements of this transaction; audiences: who hears of it
    changed: the jobs whose state changed, each with the reason if it is an unusual one"""

    def __init__(self, connection: AsyncConnection, outbox: Outbox) -> None:
        self.connection = connection
        self.changed: list[tuple[Job, str | None]] = []
        self.audiences: set[Audience] = set()
        self._outbox = outbox

    def note_created(self, created: Sequence[Job]) -> None:
        if created:
            self.changed += [(job, None) for job in created]
            self.audiences.add(Audience.RUNNERS)

    async def transition(
        self, to: JobState, where: ColumnElement[bool], reason: str | None = None, **values: Any
    ) -> list[Job]:
        """The only way to change state, if TRANSITIONS allows it. Returns the changed jobs in order."""
        origins = [state for state, destinations in TRANSITIONS.items() if to in destinations]
        if to is not JobState.PROCESSING:
            values["lease_until"] = None
        if to.is_final:
            values |= {"completed_at": now_s(), "previews": {}}
        statement = (
            update(jobs).where(where, jobs.c.state.in_(origins)).values(state=to, **values).returning(jobs)
        )
        rows = (await self.connection.execute(statement)).all()
        changed = [read_job(row) for row in sorted(rows, key=lambda row: (-row.priority, row.seq))]
        if not changed:
            return []
        self.changed += [(job, reason) for job in changed]
        self.audiences.add(Audience.CLIENTS)
        if to in (JobState.STARTING, JobState.CANCELED):  # to claim the job, or to stop work on it
            self.audiences.add(Audience.RUNNERS)
        if to.is_final:
            await self.tell(WebhookEvent.COMPLETED, changed)
        elif to is JobState.PROCESSING:
            await self.tell(WebhookEvent.START, [job for job in changed if job.attempt == 1])
        return changed

    async def tell(self, event: WebhookEvent, changed: Sequence[Job]) -> None:
        """Adds messages for the webhooks that want such events."""
        if await self._outbox.add(self.connection, event, changed):
            self.audiences.add(Audience.RUNNERS)
