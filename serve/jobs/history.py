"""The history of jobs: every state that they came into."""

from collections.abc import Sequence

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.jobs.job import Job
from serve.jobs.tables import now_s, transitions


async def record(connection: AsyncConnection, changed: Sequence[Job], reason: str | None) -> None:
    """In the transaction of the change. reason: where it is not the usual one."""
    if changed:
        await connection.execute(
            insert(transitions).values(at=now_s()),
            [
                {"job_id": job.id, "state": job.state, "attempt": job.attempt, "reason": reason}
                for job in changed
            ],
        )
