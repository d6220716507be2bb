"""The outbox: webhook messages, written with the change they report, kept until delivered or given up."""

import json
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, and_, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.jobs.database import Database, uninterrupted
from serve.jobs.job import Job, WebhookEvent
from serve.jobs.tables import deliveries, now_s


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message to a webhook, leased to a sender.

    id: the same in all attempts, cannot be guessed
    payload: JSON
    attempt: 1 for the first
    due: when the lease ends and another sender may take it, on the database's clock
    """

    id: str
    job_id: str
    event: WebhookEvent
    url: str
    host: str
    payload: bytes
    attempt: int
    due: float


class Outbox:
    """describe: a job as webhooks get it; if it fails, the change that it reports fails too"""

    def __init__(self, database: Database, describe: Callable[[Job], Mapping[str, Any]]) -> None:
        self.database = database
        self._describe = describe

    async def add(self, connection: AsyncConnection, event: WebhookEvent, changed: Iterable[Job]) -> bool:
        """Adds messages in the transaction of the change, for jobs with a webhook for such events.

        Returns whether there are any.
        """
        rows = [
            {
                "id": f"msg_{secrets.token_urlsafe(24)}",
                "job_id": job.id,
                "event": event,
                "url": job.webhook.url,
                "host": urlsplit(job.webhook.url).hostname or "",
                "payload": json.dumps(self._describe(job)).encode(),
                "attempt": 0,
            }
            for job in changed
            if job.webhook is not None and event in job.webhook.events
        ]
        if rows:
            await connection.execute(insert(deliveries).values(created_at=now_s(), due=now_s()), rows)
        return bool(rows)

    def is_due(self, busy_hosts: Collection[str]) -> ColumnElement[bool]:
        """The condition under which a message is due, for `JobStore.look`.

        busy_hosts: hosts to leave out
        """
        return select(deliveries.c.seq).where(_is_due(busy_hosts)).exists()

    @uninterrupted
    async def due_deliveries(
        self, limit: int, lease_s: float, per_host: int | None = None, busy_hosts: Collection[str] = ()
    ) -> list[Delivery]:
        """Leases due messages, longest due first. Nobody else gets them before lease_s have passed.

        per_host: limit for one host, so that a slow one leaves room for others; busy_hosts: to leave out
        """
        columns = deliveries.c
        is_due = _is_due(busy_hosts)
        turn = func.row_number().over(partition_by=columns.host, order_by=(columns.due, columns.seq))
        in_turn = select(columns.seq, turn.label("turn")).where(is_due).subquery()
        due = (
            select(columns.seq)
            .where(
                is_due, columns.seq.in_(select(in_turn.c.seq).where(in_turn.c.turn <= (per_host or limit)))
            )
            .order_by(columns.due, columns.seq)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte("due_deliveries")
        )
        statement = (
            update(deliveries)
            .where(columns.seq.in_(select(due.c.seq)))
            .values(attempt=columns.attempt + 1, due=now_s() + lease_s)
            .returning(deliveries)
        )
        async with self.database.write() as connection:
            rows = (await connection.execute(statement)).all()
        return [
            Delivery(
                id=row.id,
                job_id=row.job_id,
                event=WebhookEvent(row.event),
                url=row.url,
                host=row.host,
                payload=row.payload,
                attempt=row.attempt,
                due=row.due,
            )
            for row in sorted(rows, key=lambda row: row.seq)
        ]

    @uninterrupted
    async def delivered(self, delivery: Delivery) -> None:
        async with self.database.write() as connection:
            await connection.execute(delete(deliveries).where(deliveries.c.id == delivery.id))

    @uninterrupted
    async def postpone(self, delivery: Delivery, in_s: float) -> None:
        """Schedules another attempt; has no effect if there was another attempt meanwhile."""
        await self._update(delivery, {"due": now_s() + in_s})

    @uninterrupted
    async def give_up(self, delivery: Delivery, reason: str) -> None:
        """Keeps the message with the reason and without payload; no effect if there was another attempt."""
        await self._update(delivery, {"due": None, "payload": b"", "reason": reason})

    async def _update(self, delivery: Delivery, values: Mapping[str, Any]) -> None:
        leased = and_(deliveries.c.id == delivery.id, deliveries.c.attempt == delivery.attempt)
        async with self.database.write() as connection:
            await connection.execute(update(deliveries).where(leased).values(values))


def _is_due(busy_hosts: Collection[str]) -> ColumnElement[bool]:
    return and_(deliveries.c.due <= now_s(), deliveries.c.host.not_in(busy_hosts))
