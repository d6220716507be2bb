"""Jobs on disk. A change of state is one transaction with its history and with what webhooks hear of it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Row,
    and_,
    bindparam,
    case,
    delete,
    func,
    not_,
    or_,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.jobs.creations import Creations
from serve.jobs.database import Database, uninterrupted
from serve.jobs.history import record
from serve.jobs.job import TRANSITIONS, Job, JobState, NewJob, WebhookEvent
from serve.jobs.outbox import Outbox
from serve.jobs.pages import Page, read_page
from serve.jobs.records import (
    Claim,
    Transition,
    UnderWay,
    Waiting,
    columns_without_data,
    output_column,
    read_job,
)
from serve.jobs.tables import jobs, now_s, transitions

# More are ended by the next sweep: others want to write, too.
MAX_SWEPT = 500
DAY_S = 24 * 3600.0

_NOTHING: Mapping[int, str] = MappingProxyType({})

_c = jobs.c
_unfinished = _c.completed_at.is_(None)
_lease_ran_out = and_(_c.state == JobState.PROCESSING, _c.lease_until < now_s())
_deadline_passed = _c.deadline <= now_s()
_died = and_(_lease_ran_out, _c.is_begun)
# A job that only waits in runners that die is not what they die of; one that was in all of these may well be.
MAX_DEATHS = 20


class JobStore:
    """The jobs that were accepted, on SQLite or PostgreSQL. Any number of processes may have it open at once.

    A runner claims a job under a lease. Its attempt is the fencing token: as soon as the job has another one
    or is over, what the runner writes is refused, and the methods that take a claim answer False. A lease
    that ran out takes nothing from its holder until somebody claims the job. All times are the database's.

    What clients ask for is looked up among their owner's jobs only; runners run everybody's.

    Everything raises JobStoreUnavailableError and StorageFullError. Nothing of the change is written then,
    and the store works again as soon as the database does.

    describe: what a webhook is told of a job; if it fails, so does the change that it was to tell of
    max_attempts: how often in a row a job may fail, or be what a runner had begun when it died, without
        coming further
    event_interval_s: a job's webhook is told of output no more often, nor of logs; what falls between is
        left out
    """

    def __init__(
        self,
        url: str,
        describe: Callable[[Job], Mapping[str, Any]],
        max_attempts: int = 3,
        event_interval_s: float = 0.5,
    ) -> None:
        self.database = Database(url)
        self.outbox = Outbox(self.database, describe)
        self._max_attempts = max_attempts
        # The lease comes first, so that databases find these few by its index among all that waits.
        self._is_exhausted = and_(
            _lease_ran_out,
            or_(and_(_c.is_begun, _c.failures + 1 >= max_attempts), _c.deaths + 1 >= MAX_DEATHS),
        )
        self._event_interval_s = event_interval_s
        self._creations = Creations(self.database)

    async def open(self) -> None:
        await self.database.open()

    async def close(self) -> None:
        await self.database.close()

    # For clients.

    @uninterrupted
    async def create(self, new: NewJob) -> Job:
        """On disk when it returns. For an idempotency key that there is already, the job that it made.

        Raises IdempotencyKeyReusedError where that was made of another payload.
        """
        return await self._creations.create(new)

    @uninterrupted
    async def get(self, job_id: str, owner: str = "") -> Job | None:
        """None if the owner has no such job."""
        statement = select(jobs).where(_c.id == job_id, _c.owner == owner)
        async with self.database.read() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else read_job(row)

    @uninterrupted
    async def page(self, limit: int, cursor: str | None = None, owner: str = "") -> Page:
        """Newest first. cursor: `next` or `previous` of another page.

        Raises InvalidRequestError for what is none.
        """
        async with self.database.read() as connection:
            return await read_page(connection, limit, cursor, owner)

    @uninterrupted
    async def queue_position(self, job: Job) -> int | None:
        """How many jobs are begun before it if nothing changes; None for one that is begun."""
        if job.state is not JobState.STARTING:
            return None
        priority = job.request.priority
        seq = select(_c.seq).where(_c.id == job.id).scalar_subquery()
        is_before = or_(_c.priority > priority, and_(_c.priority == priority, _c.seq < seq))
        statement = select(func.count()).where(_unfinished, _c.state == JobState.STARTING, is_before)
        async with self.database.read() as connection:
            return (await connection.execute(statement)).scalar_one()

    @uninterrupted
    async def waiting(self) -> Waiting:
        oldest_s = func.coalesce(now_s() - func.min(_c.created_at), 0.0)
        statement = select(func.count(), oldest_s).where(_unfinished, _c.state == JobState.STARTING)
        async with self.database.read() as connection:
            return Waiting(*(await connection.execute(statement)).one())

    @uninterrupted
    async def under_way(self) -> UnderWay:
        held = and_(_unfinished, _c.lease_until >= now_s())
        waiting = select(_c.seq).where(_unfinished, or_(_c.state == JobState.STARTING, _lease_ran_out))
        async with self.database.read() as connection:
            rows = (await connection.execute(select(jobs).where(held))).all()
            is_more_waiting = (await connection.execute(select(waiting.exists()))).scalar_one()
        return UnderWay([read_job(row) for row in rows], bool(is_more_waiting))

    @uninterrupted
    async def cancel(self, job_id: str, owner: str = "") -> Job | None:
        """At once, begun or not; one that is over stays as it is. None if the owner has no such job."""
        is_it = and_(_c.id == job_id, _c.owner == owner)
        async with self.database.write() as connection:
            canceled = await self._transition(connection, JobState.CANCELED, is_it)
            if canceled:
                return canceled[0]
            row = (await connection.execute(select(jobs).where(is_it))).one_or_none()
        return None if row is None else read_job(row)

    @uninterrupted
    async def history(self, job_id: str) -> list[Transition]:
        """Every state that it came into, in order; empty if there is no such job."""
        statement = select(transitions).where(transitions.c.job_id == job_id).order_by(transitions.c.seq)
        async with self.database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [Transition(JobState(row.state), row.attempt, row.at, row.reason) for row in rows]

    @uninterrupted
    async def counts(self) -> Mapping[JobState, int]:
        statement = union_all(
            *(
                select(_c.state, func.count()).where(where).group_by(_c.state)
                for where in (_unfinished, not_(_unfinished))  # there is an index of either
            )
        )
        async with self.database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return dict.fromkeys(JobState, 0) | {JobState(state): number for state, number in rows}

    # For runners.

    @uninterrupted
    async def claim(self, limit: int, lease_s: float, running: Collection[str] = ()) -> list[Job]:
        """By priority and then by age: jobs that wait, and those whose runner let its lease run out.

        running: the ids of what this runner has already: it is not dead, whatever its leases say
        """
        is_free = or_(_c.state == JobState.STARTING, and_(_lease_ran_out, not_(self._is_exhausted)))
        in_time = or_(_c.deadline.is_(None), not_(_deadline_passed))
        is_claimable = and_(_unfinished, is_free, in_time, _c.id.not_in(running))
        picked = _pick(is_claimable, limit, _c.priority.desc(), _c.seq)
        async with self.database.write() as connection:
            await self._fail_exhausted(connection, running)
            claimed = await self._transition(
                connection,
                JobState.PROCESSING,
                _c.seq.in_(select(picked.c.seq)),
                attempt=_c.attempt + 1,
                failures=_c.failures + case((_died, 1), else_=0),
                deaths=_c.deaths + case((_lease_ran_out, 1), else_=0),
                is_begun=False,
                lease_until=now_s() + lease_s,
                started_at=func.coalesce(_c.started_at, now_s()),
            )
        return claimed

    @uninterrupted
    async def renew(self, claims: Collection[Claim], lease_s: float) -> set[str]:
        """The ids of the jobs that are still held; they now are for lease_s more."""
        if not claims:
            return set()
        picked = _pick(_held(claims), len(claims), _c.seq, skip_locked=False)
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
        """The ids of the jobs that nobody has taken from these claims: that are held, or have succeeded."""
        if not claims:
            return set()
        is_ours = and_(_of(claims), _c.state.in_([JobState.PROCESSING, JobState.SUCCEEDED]))
        async with self.database.read() as connection:
            return set((await connection.execute(select(_c.id).where(is_ours))).scalars())

    @uninterrupted
    async def give_back(self, claim: Claim) -> bool:
        """Its runner stops: the job waits as if it had not been begun, but this token does not come again."""
        async with self.database.write() as connection:
            given_back = await self._transition(
                connection,
                JobState.STARTING,
                _held([claim]),
                reason="Its runner gave it back.",
            )
        return bool(given_back)

    @uninterrupted
    async def begin(self, claim: Claim) -> bool:
        """Something of it comes to this runner; so far it only waited for its turn."""
        statement = update(jobs).where(_held([claim])).values(is_begun=True).returning(_c.id)
        async with self.database.write() as connection:
            return bool((await connection.execute(statement)).all())

    @uninterrupted
    async def record_progress(self, steps_done: Mapping[Claim, int]) -> set[str]:
        """Of any number of jobs in one transaction. The ids of the jobs that are still held.

        What is recorded never falls: steps that another attempt has to do again are not counted again.
        """
        if not steps_done:
            return set()
        async with self.database.write() as connection:
            rows = await _lock(connection, steps_done)
            changed = [(row, _advanced(row, steps_done[Claim(row.id, row.attempt)])) for row in rows]
            await _keep(connection, changed)
            await self._notify(connection, WebhookEvent.LOGS, changed)
        return {row.id for row in rows}

    @uninterrupted
    async def record_image(self, claim: Claim, index: int, key: str, steps_done: int) -> bool:
        """Image `index` of the job is in the object store, under that key.

        steps_done: of all its images
        """
        async with self.database.write() as connection:
            return await self._record_output(connection, claim, {index: key}, steps_done)

    @uninterrupted
    async def succeed(self, claim: Claim, output: Mapping[int, str] = _NOTHING) -> bool:
        """output: images that are in the object store and not recorded yet, by index their keys"""
        async with self.database.write() as connection:
            if output:
                await self._record_output(connection, claim, output)
            succeeded = await self._transition(
                connection, JobState.SUCCEEDED, _held([claim]), steps_done=_c.num_steps
            )
        return bool(succeeded)

    @uninterrupted
    async def fail(self, claim: Claim, error: str) -> bool:
        async with self.database.write() as connection:
            failed = await self._transition(
                connection, JobState.FAILED, _held([claim]), reason=error, error=error
            )
        return bool(failed)

    @uninterrupted
    async def retry(self, claim: Claim, error: str) -> bool:
        """Back to those that wait; failed if that was its last attempt."""
        async with self.database.write() as connection:
            is_last = and_(_held([claim]), _c.failures + 1 >= self._max_attempts)
            ended = await self._transition(connection, JobState.FAILED, is_last, reason=error, error=error)
            if not ended:
                ended = await self._transition(
                    connection, JobState.STARTING, _held([claim]), reason=error, failures=_c.failures + 1
                )
        return bool(ended)

    # Housekeeping.

    @uninterrupted
    async def sweep(self, running: Collection[str] = (), key_age_s: float = DAY_S) -> list[Job]:
        """Ends jobs past their deadline and those whose last runner died; answers with them.

        running: as `claim` has it; key_age_s: idempotency keys older than this are free again
        """
        too_late = _pick(and_(_unfinished, _deadline_passed), MAX_SWEPT, _c.deadline)
        reason = "It was not finished by its deadline."
        old_key = and_(_c.idempotency_key.is_not(None), _c.created_at < now_s() - key_age_s)
        with_old_key = _pick(old_key, MAX_SWEPT, _c.created_at)
        async with self.database.write() as connection:
            ended = await self._transition(
                connection,
                JobState.CANCELED,
                _c.seq.in_(select(too_late.c.seq)),
                reason=reason,
                error=reason,
            )
            ended += await self._fail_exhausted(connection, running)
            await connection.execute(
                update(jobs)
                .where(_c.seq.in_(select(with_old_key.c.seq)))
                .values(idempotency_key=None, fingerprint=None)
            )
        return ended

    @uninterrupted
    async def expired(self, age_s: float, limit: int) -> list[Job]:
        """Jobs that are over for longer than this and still have their data, oldest first.

        Delete their objects and then call remove_data: in this order a crash between leaves nothing behind.
        """
        statement = (
            select(jobs)
            .where(_c.data_removed.is_(False), _c.completed_at < now_s() - age_s)
            .order_by(_c.completed_at)
            .limit(limit)
        )
        async with self.database.read() as connection:
            return [read_job(row) for row in (await connection.execute(statement)).all()]

    @uninterrupted
    async def remove_data(self, expired: Collection[Job]) -> None:
        """Prompts, input and output are gone; what webhooks have not been told yet they still are."""
        async with self.database.write() as connection:
            for job in expired:
                assert job.state.is_final
                await connection.execute(
                    update(jobs).where(_c.id == job.id).values(columns_without_data(job))
                )

    @uninterrupted
    async def forget(self, age_s: float, limit: int) -> int:
        """Deletes jobs that are over for longer than this and have no data left. How many there were."""
        old = and_(_c.data_removed.is_(True), _c.completed_at < now_s() - age_s)
        picked = _pick(old, limit, _c.completed_at)
        statement = delete(jobs).where(_c.seq.in_(select(picked.c.seq))).returning(_c.id)
        async with self.database.write() as connection:
            return len((await connection.execute(statement)).all())

    # How a job changes.

    async def _transition(
        self,
        connection: AsyncConnection,
        to: JobState,
        where: ColumnElement[bool],
        reason: str | None = None,
        **values: Any,
    ) -> list[Job]:
        """The only way into a state, from those that TRANSITIONS allows. The jobs that took it, in order."""
        origins = [state for state, destinations in TRANSITIONS.items() if to in destinations]
        if to is not JobState.PROCESSING:
            values["lease_until"] = None
        if to.is_final:
            values["completed_at"] = now_s()
        statement = (
            update(jobs).where(where, _c.state.in_(origins)).values(state=to, **values).returning(jobs)
        )
        rows = (await connection.execute(statement)).all()
        changed = [read_job(row) for row in sorted(rows, key=lambda row: (-row.priority, row.seq))]
        await record(connection, changed, reason)
        if to.is_final:
            await self.outbox.add(connection, WebhookEvent.COMPLETED, changed)
        elif to is JobState.PROCESSING:
            first = [job for job in changed if job.attempt == 1]
            await self.outbox.add(connection, WebhookEvent.START, first)
        return changed

    async def _record_output(
        self,
        connection: AsyncConnection,
        claim: Claim,
        output: Mapping[int, str],
        steps_done: int | None = None,
    ) -> bool:
        """steps_done: None if that is the last of it"""
        rows = await _lock(connection, [claim])
        changed = [
            (row, _advanced(row, row.num_steps if steps_done is None else steps_done, output)) for row in rows
        ]
        await _keep(connection, changed)
        await self._notify(connection, WebhookEvent.OUTPUT, changed)
        return bool(rows)

    async def _fail_exhausted(self, connection: AsyncConnection, running: Collection[str]) -> list[Job]:
        is_lost = and_(_unfinished, self._is_exhausted, _c.id.not_in(running))
        picked = _pick(is_lost, MAX_SWEPT, _c.lease_until)
        reason = f"It came no further in {self._max_attempts} attempts or more; at the last its runner died."
        return await self._transition(
            connection, JobState.FAILED, _c.seq.in_(select(picked.c.seq)), reason=reason, error=reason
        )

    async def _notify(
        self, connection: AsyncConnection, event: WebhookEvent, changed: list[tuple[Row[Any], Job]]
    ) -> None:
        """For what comes often: not sooner after the last time than event_interval_s."""
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
            await connection.execute(update(jobs).where(_c.seq.in_(seqs)).values({column: now_s()}))
            await self.outbox.add(connection, event, [job for _, job in due])


def _pick(
    where: ColumnElement[bool], limit: int, *order: ColumnElement[Any], skip_locked: bool = True
) -> CTE:
    """The seq of rows, locked in this order. A subquery might be run again for each row, and pick anew."""
    return (
        select(_c.seq)
        .where(where)
        .order_by(*order)
        .limit(limit)
        .with_for_update(skip_locked=skip_locked)
        .cte("picked")
    )


def _of(claims: Collection[Claim]) -> ColumnElement[bool]:
    tokens = [(claim.job_id, claim.attempt) for claim in claims]
    return and_(
        _c.id.in_([claim.job_id for claim in claims]),  # SQLite finds rows by this, but not by the pairs
        tuple_(_c.id, _c.attempt).in_(tokens),
    )


def _held(claims: Collection[Claim]) -> ColumnElement[bool]:
    return and_(_of(claims), _c.state == JobState.PROCESSING)


def _advanced(row: Row[Any], steps_done: int, output: Mapping[int, str] = _NOTHING) -> Job:
    """The job of a row, when it has come so far."""
    job = read_job(row)
    return replace(job, steps_done=max(job.steps_done, steps_done), output={**job.output, **output})


async def _keep(connection: AsyncConnection, changed: list[tuple[Row[Any], Job]]) -> None:
    """Of locked rows. Once a job has come further, no earlier failure counts: it was not their cause."""
    values = []
    for row, job in changed:
        was = read_job(row)
        is_further = job.steps_done > was.steps_done or len(job.output) > len(was.output)
        values.append(
            {
                "of_seq": row.seq,
                "steps_done": job.steps_done,
                "output": output_column(job.output),
                "is_begun": True,
                "failures": 0 if is_further else row.failures,
                "deaths": 0 if is_further else row.deaths,
            }
        )
    if values:
        await connection.execute(update(jobs).where(_c.seq == bindparam("of_seq")), values)


async def _lock(connection: AsyncConnection, claims: Collection[Claim]) -> list[Row[Any]]:
    """The rows of those still held, each with the time now. All lock in one order, so none waits for ever."""
    statement = select(jobs, now_s().label("now")).where(_held(claims)).order_by(_c.seq).with_for_update()
    return list((await connection.execute(statement)).all())
