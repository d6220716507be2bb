"""Adds jobs to the job store. Jobs that arrive together share a transaction."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Double, bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.errors import IdempotencyKeyReusedError
from serve.jobs.changes import Changes, Transaction
from serve.jobs.database import Database
from serve.jobs.job import IdempotencyKey, Job, NewJob
from serve.jobs.records import idempotency_key_column, new_row, read_job
from serve.jobs.tables import jobs, now_s


@dataclass(frozen=True, eq=False, slots=True)
class _Creation:
    new: NewJob
    created: "asyncio.Future[Job]"

    @property
    def job_id(self) -> str:
        return self.new.request.request_id


class Creations:
    """Adds jobs in batches. A job's main cost is its transaction, which waits for the disk."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._changes = changes
        self._waiting: list[_Creation] = []
        self._turn = asyncio.Lock()
        # Kept, so that SQLAlchemy need not process it again for each job.
        self._insertion = (
            database.insert(jobs)
            .values(created_at=now_s(), deadline=now_s() + bindparam("lifetime_s", type_=Double))
            .on_conflict_do_nothing(index_elements=[jobs.c.idempotency_key])
            .returning(jobs)
        )

    async def create(self, new: NewJob) -> Job:
        """See `JobStore.create`."""
        creation = _Creation(new, asyncio.get_running_loop().create_future())
        self._waiting.append(creation)
        async with self._turn:
            if not creation.created.done():  # else the previous holder of the turn did it
                together, self._waiting = self._waiting, []
                await self._create(together)
        return await creation.created

    async def _create(self, together: Sequence[_Creation]) -> None:
        """Creates the jobs and passes the transaction's outcome to each caller."""
        made: dict[str, Job | IdempotencyKeyReusedError] = {}
        try:
            async with self._changes.begin() as transaction:
                while left := [item.new for item in together if item.job_id not in made]:
                    made |= await self._insert(transaction, left)
        except asyncio.CancelledError:
            for item in together:
                item.created.cancel()
            raise
        except Exception as outcome:
            for item in together:
                item.created.set_exception(outcome)
            return
        for item in together:
            if isinstance(result := made[item.job_id], Job):
                item.created.set_result(result)
            else:
                item.created.set_exception(result)

    async def _insert(
        self, transaction: Transaction, news: Sequence[NewJob]
    ) -> dict[str, Job | IdempotencyKeyReusedError]:
        """Results by requested id. Lacks those whose idempotency key was freed in this moment."""
        # Sorted by key, so in the same order everywhere: no two transactions wait for each other.
        in_order = sorted(news, key=lambda new: idempotency_key_column(new.owner, new.idempotency_key) or "")
        connection = transaction.connection
        rows = (await connection.execute(self._insertion, [new_row(new) for new in in_order])).all()
        created = [read_job(row) for row in rows]
        transaction.note_created(created)
        made: dict[str, Job | IdempotencyKeyReusedError] = {job.id: job for job in created}
        for new in news:
            if new.request.request_id in made:
                continue
            assert new.idempotency_key is not None, "only a key can be there already"
            try:
                existing = await find_by_key(connection, new.owner, new.idempotency_key)
            except IdempotencyKeyReusedError as error:
                made[new.request.request_id] = error
            else:
                if existing is not None:
                    made[new.request.request_id] = existing
        return made


async def find_by_key(connection: AsyncConnection, owner: str, key: IdempotencyKey) -> Job | None:
    """The job with this key. Raises IdempotencyKeyReusedError if it had another payload."""
    has_key = jobs.c.idempotency_key == idempotency_key_column(owner, key)
    row = (await connection.execute(select(jobs).where(has_key))).one_or_none()
    if row is None:
        return None
    if row.fingerprint != key.fingerprint:
        raise IdempotencyKeyReusedError(
            "This idempotency key was used for another payload; use a new key for a new prediction.",
            param="Idempotency-Key",
        )
    return read_job(row)
