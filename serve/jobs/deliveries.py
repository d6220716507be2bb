"""Sends webhooks: takes due messages from the outbox and records the outcome there."""

import asyncio
import logging
from collections import Counter

from serve.jobs.metrics import JobMetrics
from serve.jobs.outbox import Delivery, Outbox
from serve.jobs.rounds import AWAY
from serve.jobs.webhooks import Delivered, GaveUp, RetryIn, WebhookSender

logger = logging.getLogger("ray.serve")

_MAX_AT_ONCE = 32
_MAX_AT_ONCE_TO_HOST = 4
_LEASE_S = 60.0  # longer than a receiver may take to answer


class Deliveries:
    """The webhooks that a runner is sending.

    has_room: set whenever a delivery ends, since others may have had no room
    """

    def __init__(
        self, outbox: Outbox, sender: WebhookSender, metrics: JobMetrics, has_room: asyncio.Event
    ) -> None:
        self._has_room = has_room
        self._outbox = outbox
        self._sender = sender
        self._metrics = metrics
        self._under_way: dict[asyncio.Task[None], str] = {}  # the host of each

    @property
    def busy_hosts(self) -> list[str]:
        """The hosts that get no more for now."""
        hosts = Counter(self._under_way.values())
        return [host for host, number in hosts.items() if number >= _MAX_AT_ONCE_TO_HOST]

    async def send_due(self) -> None:
        """Starts due deliveries and does not wait for the receivers, so that a slow one delays no others."""
        free = _MAX_AT_ONCE - len(self._under_way)
        if not free:
            return
        for delivery in await self._outbox.due_deliveries(
            free, _LEASE_S, _MAX_AT_ONCE_TO_HOST, self.busy_hosts
        ):
            task = asyncio.create_task(self._send(delivery))
            self._under_way[task] = delivery.host
            task.add_done_callback(self._end)

    async def stop(self) -> None:
        """Cancels deliveries. Each is sent again when its lease has run out."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._has_room.set()

    async def _send(self, delivery: Delivery) -> None:
        try:
            outcome = await self._sender.send(delivery.id, delivery.url, delivery.payload, delivery.attempt)
            self._metrics.count_delivery(outcome)
            match outcome:
                case Delivered():
                    await self._outbox.delivered(delivery)
                case RetryIn(seconds, reason):
                    logger.info("webhook %s of job %s: %s", delivery.id, delivery.job_id, reason)
                    await self._outbox.postpone(delivery, seconds)
                case GaveUp(reason):
                    logger.warning("webhook %s of job %s given up: %s", delivery.id, delivery.job_id, reason)
                    await self._outbox.give_up(delivery, reason)
        except AWAY as error:
            logger.warning("webhook %s will be sent again: %s", delivery.id, error.detail)
        except Exception:  # the boundary of a delivery; it is tried again after its lease
            logger.exception("webhook %s of job %s failed", delivery.id, delivery.job_id)
