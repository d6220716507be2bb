"""Time's effects on jobs: deadlines, dead runners, old keys and old data."""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update

from serve.jobs.changes import Changes, Transaction
from serve.jobs.conditions import deadline_passed, lost, pick, unfinished, waiting
from serve.jobs.database import Database, uninterrupted
from serve.jobs.job import Job, JobState
from serve.jobs.records import Waiting, columns_without_data, read_job
from serve.jobs.tables import jobs, now_s

# The next sweep ends more, so that others can write in between.
MAX_SWEPT = 500
DAY_S = 24 * 3600.0

_c = jobs.c
_late = and_(unfinished, deadline_passed)


class Housekeeping:
    """The part of the job store that ends, cleans up and counts jobs, of all models and owners."""

    def __init__(self, database: Database, changes: Changes, max_attempts: int) -> None:
        self.database = database
        self._changes = changes
        self._max_attempts = max_attempts

    def is_needed(self, running: Collection[str]) -> ColumnElement[bool]:
        """The condition under which a sweep would change anything, for `JobStore.look`."""
        conditions = (_late, lost(self._max_attempts, running), _has_old_key(DAY_S))
        return or_(*(select(_c.seq).where(condition).exists() for condition in conditions))

    @uninterrupted
    async def sweep(self, running: Collection[str] = (), key_age_s: float = DAY_S) -> list[Job]:
        """Ends jobs past their deadline and jobs whose last runner died, and returns them.

        running: see `JobQueue.claim`; key_age_s: idempotency keys older than this become free again
        """
        too_late = pick(_late, MAX_SWEPT, _c.deadline)
        reason = "It was not finished by its deadline."
        with_old_key = pick(_has_old_key(key_age_s), MAX_SWEPT, _c.created_at)
        async with self._changes.begin() as transaction:
            ended = await transaction.transition(
                JobState.CANCELED, _c.seq.in_(select(too_late.c.seq)), reason=reason, error=reason
            )
            ended += await self._fail_lost(transaction, running)
            await transaction.connection.execute(
                update(jobs)
                .where(_c.seq.in_(select(with_old_key.c.seq)))
                .values(idempotency_key=None, fingerprint=None)
            )
        return ended

    @uninterrupted
    async def waiting(self) -> Mapping[str, Waiting]:
        """Jobs that no runner has begun, by model, including models that nobody serves."""
        oldest_s = now_s() - func.min(_c.created_at)
        statement = select(_c.model, func.count(), oldest_s).where(waiting).group_by(_c.model)
        async with self.database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return {model: Waiting(number, age_s) for model, number, age_s in rows}

    async def expired(self, age_s: float, limit: int) -> list[Job]:
        """Jobs that ended longer ago than this and still have their data, oldest first.

        Delete their objects and then call remove_data. In this order a crash leaves nothing behind.
        """
        is_expired = and_(_c.data_removed.is_(False), _ended_before(age_s))
        return await self._some(is_expired, _c.completed_at, limit)

    async def deleted(self, limit: int) -> list[Job]:
        """Jobs that their clients have deleted and that still have their data, to be treated as expired."""
        # Written as the index has it, or SQLite would not use the index.
        has_data_to_delete = and_(_c.is_deleted.is_(True), _c.data_removed.is_(False))
        return await self._some(has_data_to_delete, _c.seq, limit)

    @uninterrupted
    async def remove_data(self, expired: Collection[Job]) -> None:
        """Deletes prompts, input and output. Webhook messages that are not yet delivered stay."""
        async with self.database.write() as connection:
            for job in expired:
                assert job.state.is_final
                await connection.execute(
                    update(jobs).where(_c.id == job.id).values(columns_without_data(job))
                )

    async def old(self, age_s: float, limit: int) -> list[Job]:
        """Jobs that ended longer ago than this and have no data left, oldest first, to be forgotten."""
        is_old = and_(_c.data_removed.is_(True), _ended_before(age_s))
        return await self._some(is_old, _c.completed_at, limit)

    @uninterrupted
    async def forget(self, old: Collection[Job]) -> None:
        """Deletes the jobs' rows."""
        picked = pick(_c.id.in_([job.id for job in old]), len(old), _c.seq)
        async with self.database.write() as connection:
            await connection.execute(delete(jobs).where(_c.seq.in_(select(picked.c.seq))))

    @uninterrupted
    async def _some(self, where: ColumnElement[bool], order: ColumnElement[Any], limit: int) -> list[Job]:
        statement = select(jobs).where(where).order_by(order).limit(limit)
        async with self.database.read() as connection:
            return [read_job(row) for row in (await connection.execute(statement)).all()]

    async def _fail_lost(self, transaction: Transaction, running: Collection[str]) -> list[Job]:
        picked = pick(lost(self._max_attempts, running), MAX_SWEPT, _c.lease_until)
        reason = f"It made no progress in {self._max_attempts} attempts or more; its last runner died."
        return await transaction.transition(
            JobState.FAILED, _c.seq.in_(select(picked.c.seq)), reason=reason, error=reason
        )


def _has_old_key(age_s: float) -> ColumnElement[bool]:
    return and_(_c.idempotency_key.is_not(None), _c.created_at < now_s() - age_s)


def _ended_before(age_s: float) -> ColumnElement[bool]:
    return _c.completed_at < now_s() - age_s
