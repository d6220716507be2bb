"""Conditions on the rows of the table `jobs`, shared by the job store's statements."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import CTE, ColumnElement, and_, or_, select, tuple_

from serve.jobs.job import JobState
from serve.jobs.records import Claim
from serve.jobs.tables import jobs, now_s

# A waiting job does not kill its runner. But a job that was in this many dying runners may well have.
MAX_DEATHS = 20

_c = jobs.c
unfinished = _c.completed_at.is_(None)
waiting = and_(unfinished, _c.state == JobState.STARTING)
lease_ran_out = and_(_c.state == JobState.PROCESSING, _c.lease_until < now_s())
died = and_(lease_ran_out, _c.is_begun)
deadline_passed = _c.deadline <= now_s()


def exhausted(max_attempts: int) -> ColumnElement[bool]:
    """The runner of the job's last attempt has died."""
    # The lease comes first, so that databases find these few rows by its index in a long queue.
    return and_(
        lease_ran_out,
        or_(and_(_c.is_begun, _c.failures + 1 >= max_attempts), _c.deaths + 1 >= MAX_DEATHS),
    )


def lost(max_attempts: int, running: Collection[str]) -> ColumnElement[bool]:
    """No runner will continue the job. running: ids of the asking runner's own jobs"""
    return and_(unfinished, exhausted(max_attempts), _c.id.not_in(running))


def of(claims: Collection[Claim]) -> ColumnElement[bool]:
    tokens = [(claim.job_id, claim.attempt) for claim in claims]
    return and_(
        _c.id.in_([claim.job_id for claim in claims]),  # SQLite finds rows by this, but not by the pairs
        tuple_(_c.id, _c.attempt).in_(tokens),
    )


def held(claims: Collection[Claim]) -> ColumnElement[bool]:
    return and_(of(claims), _c.state == JobState.PROCESSING)


def pick(where: ColumnElement[bool], limit: int, *order: ColumnElement[Any], skip_locked: bool = True) -> CTE:
    """The seq of rows, locked in this order. Not a subquery, which might run again per row and pick anew."""
    return (
        select(_c.seq)
        .where(where)
        .order_by(*order)
        .limit(limit)
        .with_for_update(skip_locked=skip_locked)
        .cte("picked")
    )
