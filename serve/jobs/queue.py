"""The job store's queue: the reads and writes of runners."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, bindparam, case, func, not_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.jobs.changes import Changes, Transaction
from serve.jobs.conditions import deadline_passed, died, exhausted, held, lease_ran_out, of, pick, unfinished
from serve.jobs.database import Database, uninterrupted
from serve.jobs.job import Job, JobState, StoredPreview, WebhookEvent
from serve.jobs.news import Audience
from serve.jobs.records import Claim, Progress, output_column, previews_column, read_job
from serve.jobs.tables import jobs, now_s

_NO_OUTPUT: Mapping[int, str] = MappingProxyType({})
_NO_PREVIEWS: Mapping[int, StoredPreview] = MappingProxyType({})

_c = jobs.c


class JobQueue:
    """The part of the job store that runners use.

    A runner claims a job under a lease. The attempt number is the fencing token. Once the job has a later
    attempt or has ended, the runner's writes are refused, and the methods that take a claim return False. An
    expired lease takes nothing from its holder until somebody claims the job.

    models, max_attempts, event_interval_s: see JobStore
    """

    def __init__(
        self,
        database: Database,
        changes: Changes,
        models: Collection[str],
        max_attempts: int,
        event_interval_s: float,
    ) -> None:
        self.database = database
        self._changes = changes
        self._models = models
        self._max_attempts = max_attempts
        self._event_interval_s = event_interval_s

    def is_waiting(self, running: Collection[str]) -> ColumnElement[bool]:
        """The condition under which a claim would get a job, for `JobStore.look`."""
        return select(_c.seq).where(self._claimable(running)).exists()

    @uninterrupted
    async def claim(self, max_images: int, lease_s: float, running: Collection[str] = ()) -> list[Job]:
        """Claims waiting jobs and jobs with an expired lease, by priority and then by age.

        max_images: of all jobs together; the last job may exceed it, or the largest would never have a turn
        running: ids of this runner's own jobs; the runner is alive, whatever its leases say
        """
        order = (_c.priority.desc(), _c.seq)
        # Each job has at least one image. Rows are locked first: no statement locks under a window.
        first = (
            select(_c.seq, _c.priority, _c.num_images)
            .where(self._claimable(running))
            .order_by(*order)
            .limit(max_images)
            .with_for_update(skip_locked=True)
            .cte("first")
        )
        in_order = (first.c.priority.desc(), first.c.seq)
        up_to_it = func.sum(first.c.num_images).over(order_by=in_order, rows=(None, 0))
        fitting = select(first.c.seq, (up_to_it - first.c.num_images).label("before")).cte("fitting")
        picked = select(fitting.c.seq).where(fitting.c.before < max_images)
        async with self._changes.begin() as transaction:
            return await transaction.transition(
                JobState.PROCESSING,
                _c.seq.in_(picked),
                attempt=_c.attempt + 1,
                failures=_c.failures + case((died, 1), else_=0),
                deaths=_c.deaths + case((lease_ran_out, 1), else_=0),
                is_begun=False,
                lease_until=now_s() + lease_s,
                started_at=func.coalesce(_c.started_at, now_s()),
            )

    @uninterrupted
    async def renew(self, claims: Collection[Claim], lease_s: float) -> set[str]:
        """Renews leases for lease_s more. Returns the ids of the jobs that are still held."""
        if not claims:
            return set()
        picked = pick(held(claims), len(claims), _c.seq, skip_locked=False)
        statement = (
            update(jobs)
            .where(_c.seq.in_(select(picked.c.seq)))
            .values(lease_until=now_s() + lease_s)
            .returning(_c.id)
        )
        async with self.database.write() as connection:
            return set((await connection.execute(statement)).scalars())

    @uninterrupted
    async def held(self, claims: Collection[Claim]) -> set[str]:
        """The ids of the jobs that nobody has taken over: still held, or succeeded."""
        if not claims:
            return set()
        is_ours = and_(of(claims), _c.state.in_([JobState.PROCESSING, JobState.SUCCEEDED]))
        async with self.database.read() as connection:
            return set((await connection.execute(select(_c.id).where(is_ours))).scalars())

    @uninterrupted
    async def give_back(self, claim: Claim) -> bool:
        """Gives back a stopping runner's job, which waits again. Its fencing token is not used again."""
        async with self._changes.begin() as transaction:
            reason = "Its runner gave it back."
            return bool(await transaction.transition(JobState.STARTING, held([claim]), reason))

    @uninterrupted
    async def begin(self, claim: Claim) -> bool:
        """Marks the job as begun on this runner; until now it only waited for its turn."""
        statement = update(jobs).where(held([claim])).values(is_begun=True).returning(_c.id)
        async with self.database.write() as connection:
            return bool((await connection.execute(statement)).all())

    @uninterrupted
    async def record_progress(self, progress: Mapping[Claim, Progress]) -> set[str]:
        """Records any number of jobs in one transaction. Returns the ids of the jobs that are still held.

        The record never falls: steps that another attempt repeats are not counted again.
        """
        if not progress:
            return set()
        async with self._changes.begin() as transaction:
            rows = await _lock(transaction.connection, progress)
            changed = []
            for row in rows:
                of_job = progress[Claim(row.id, row.attempt)]
                changed.append((row, _advanced(row, of_job.steps_done, previews=of_job.previews)))
            await _keep(transaction, changed)
            await self._notify(transaction, WebhookEvent.LOGS, changed)
        return {row.id for row in rows}

    @uninterrupted
    async def record_image(self, claim: Claim, index: int, key: str, steps_done: int) -> bool:
        """Records that image `index` of the job is in the object store under that key.

        steps_done: steps of all its images
        """
        async with self._changes.begin() as transaction:
            return await self._record_output(transaction, claim, {index: key}, steps_done)

    @uninterrupted
    async def succeed(self, claim: Claim, output: Mapping[int, str] = _NO_OUTPUT) -> bool:
        """output: keys of images, by index, that are in the object store but not recorded yet"""
        async with self._changes.begin() as transaction:
            if output:
                await self._record_output(transaction, claim, output)
            succeeded = await transaction.transition(
                JobState.SUCCEEDED, held([claim]), steps_done=_c.num_steps
            )
        return bool(succeeded)

    @uninterrupted
    async def fail(self, claim: Claim, error: str) -> bool:
        async with self._changes.begin() as transaction:
            return bool(await transaction.transition(JobState.FAILED, held([claim]), error, error=error))

    @uninterrupted
    async def retry(self, claim: Claim, error: str) -> bool:
        """Puts the job back into the queue, or fails it after its last attempt."""
        async with self._changes.begin() as transaction:
            is_last = and_(held([claim]), _c.failures + 1 >= self._max_attempts)
            ended = await transaction.transition(JobState.FAILED, is_last, error, error=error)
            if not ended:
                ended = await transaction.transition(
                    JobState.STARTING, held([claim]), error, failures=_c.failures + 1
                )
        return bool(ended)

    def _claimable(self, running: Collection[str]) -> ColumnElement[bool]:
        is_lost = and_(lease_ran_out, not_(exhausted(self._max_attempts)))
        is_free = or_(_c.state == JobState.STARTING, is_lost)
        in_time = or_(_c.deadline.is_(None), not_(deadline_passed))
        return and_(unfinished, _c.model.in_(self._models), is_free, in_time, _c.id.not_in(running))

    async def _record_output(
        self,
        transaction: Transaction,
        claim: Claim,
        output: Mapping[int, str],
        steps_done: int | None = None,
    ) -> bool:
        """steps_done: None after the last image"""
        rows = await _lock(transaction.connection, [claim])
        changed = [
            (row, _advanced(row, row.num_steps if steps_done is None else steps_done, output)) for row in rows
        ]
        await _keep(transaction, changed)
        await self._notify(transaction, WebhookEvent.OUTPUT, changed)
        return bool(rows)

    async def _notify(
        self, transaction: Transaction, event: WebhookEvent, changed: list[tuple[Row[Any], Job]]
    ) -> None:
        """Tells webhooks of frequent events, at most once per event_interval_s."""
        column = _c.output_notified_at if event is WebhookEvent.OUTPUT else _c.notified_at
        due = []
        for row, job in changed:
            told_at = getattr(row, column.name)
            if (
                job.webhook is not None
                and event in job.webhook.events
                and (told_at is None or row.now - told_at >= self._event_interval_s)
            ):
                due.append((row.seq, job))
        if due:
            seqs = [seq for seq, _ in due]
            told = update(jobs).where(_c.seq.in_(seqs)).values({column: now_s()})
            await transaction.connection.execute(told)
            await transaction.tell(event, [job for _, job in due])


def _advanced(
    row: Row[Any],
    steps_done: int,
    output: Mapping[int, str] = _NO_OUTPUT,
    previews: Mapping[int, StoredPreview] = _NO_PREVIEWS,
) -> Job:
    """The row's job with this progress."""
    job = read_job(row)
    output = {**job.output, **output}
    return replace(
        job,
        steps_done=max(job.steps_done, steps_done),
        output=output,
        previews={i: one for i, one in {**job.previews, **previews}.items() if i not in output},
    )


async def _keep(transaction: Transaction, changed: list[tuple[Row[Any], Job]]) -> None:
    """Writes to locked rows. Progress resets the failures: they had another cause."""
    values = []
    for row, job in changed:
        was = read_job(row)
        is_further = job.steps_done > was.steps_done or len(job.output) > len(was.output)
        values.append(
            {
                "of_seq": row.seq,
                "steps_done": job.steps_done,
                "output": output_column(job.output),
                "previews": previews_column(job.previews),
                "is_begun": True,
                "failures": 0 if is_further else row.failures,
                "deaths": 0 if is_further else row.deaths,
            }
        )
    if values:
        transaction.audiences.add(Audience.CLIENTS)
        await transaction.connection.execute(update(jobs).where(_c.seq == bindparam("of_seq")), values)


async def _lock(connection: AsyncConnection, claims: Collection[Claim]) -> list[Row[Any]]:
    """The rows that are still held, with the time now. All lock in the same order, so none waits for ever."""
    statement = select(jobs, now_s().label("now")).where(held(claims)).order_by(_c.seq).with_for_update()
    return list((await connection.execute(statement)).all())
