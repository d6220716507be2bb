"""The outbox, on both databases: webhooks hear of changes and nothing else, each message by one sender."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from serve.jobs.job import Job, JobState, Webhook, WebhookEvent
from serve.jobs.records import Claim, Progress
from serve.jobs.store import JobStore
from tests.job_stores import (
    DEAD,
    LONG,
    History,
    claim_one,
    describe,
    in_loop,
    new_job,
    opened,
    told,
    webhook,
)


@in_loop
async def test_webhooks_are_told_of_what_they_asked_for(url: str) -> None:
    async with opened(url, event_interval_s=0.0) as store:
        await store.create(new_job("all", webhook=webhook()))
        await store.create(new_job("end", webhook=webhook(WebhookEvent.COMPLETED)))
        await store.create(new_job("none"))
        assert await told(store) == []
        claims = [Claim.of(job) for job in await store.queue.claim(6, LONG)]
        assert [(job_id, event) for job_id, event, _ in await told(store)] == [("all", WebhookEvent.START)]
        await store.queue.record_progress(dict.fromkeys(claims, Progress(5)))
        for claim in claims:
            await store.queue.record_image(claim, 0, "a key", 5)
        assert await told(store) == [
            ("all", WebhookEvent.LOGS, {"id": "all", "status": "processing", "steps": 5, "output": []}),
            (
                "all",
                WebhookEvent.OUTPUT,
                {"id": "all", "status": "processing", "steps": 5, "output": ["a key"]},
            ),
        ]
        assert await store.queue.give_back(claims[0])
        await store.queue.claim(1, LONG)
        assert await told(store) == []  # it had begun before
        await store.cancel("all")
        await store.cancel("all")
        await store.queue.fail(claims[1], "error")
        await store.queue.succeed(claims[2])
        assert [(job_id, payload["status"]) for job_id, _, payload in await told(store)] == [
            ("all", "canceled"),
            ("end", "failed"),
        ]


@in_loop
async def test_the_last_image_is_told_of_with_all_steps_and_before_the_end(url: str) -> None:
    async with opened(url) as store:
        await store.create(new_job("a", webhook=webhook(WebhookEvent.OUTPUT, WebhookEvent.COMPLETED)))
        await store.queue.succeed(await claim_one(store), {0: "key"})
        assert [(event, payload["steps"], payload["output"]) for _, event, payload in await told(store)] == [
            (WebhookEvent.OUTPUT, 20, ["key"]),
            (WebhookEvent.COMPLETED, 20, ["key"]),
        ]


@in_loop
async def test_what_comes_often_is_told_of_once_in_an_interval(url: str) -> None:
    async with opened(url, event_interval_s=3600.0) as store:
        await store.create(new_job("a", webhook=webhook()))
        claim = await claim_one(store)
        for steps in (1, 2, 3):
            await store.queue.record_progress({claim: Progress(steps)})
            await store.queue.record_image(claim, 0, "key", 5)
        await store.queue.succeed(claim)
        events = [event for _, event, _ in await told(store)]
        # Messages about logs do not delay those about output.
        assert events == [
            WebhookEvent.START,
            WebhookEvent.LOGS,
            WebhookEvent.OUTPUT,
            WebhookEvent.COMPLETED,
        ]


@in_loop
async def test_a_change_and_what_is_told_of_it_are_one(url: str, history: History) -> None:
    def describe_or_fail(job: Job) -> Mapping[str, Any]:
        if job.state.is_final:
            raise RuntimeError("cannot be told")
        return describe(job)

    async with opened(url, describe=describe_or_fail) as store:
        await store.create(new_job("a", webhook=webhook()))
        claim = await claim_one(store)
        before = await store.get("a")
        for end in (store.queue.succeed(claim), store.queue.fail(claim, "error"), store.cancel("a")):
            with pytest.raises(RuntimeError, match="cannot be told"):
                await end
        assert await store.get("a") == before
        assert history.states("a") == [(JobState.STARTING, 0), (JobState.PROCESSING, 1)]
        assert [event for _, event, _ in await told(store)] == [WebhookEvent.START]


@in_loop
async def test_a_delivery_is_leased_until_it_is_made_or_given_up(url: str) -> None:
    async with opened(url) as store:
        outbox = store.outbox
        for job_id in "abcd":
            await store.create(new_job(job_id, webhook=webhook(WebhookEvent.COMPLETED)))
            await store.cancel(job_id)
        dead = await outbox.due_deliveries(2, DEAD)
        assert [(delivery.job_id, delivery.attempt) for delivery in dead] == [("a", 1), ("b", 1)]
        assert len({delivery.id for delivery in dead}) == 2
        assert all(delivery.id.startswith("msg_") for delivery in dead)
        again = await outbox.due_deliveries(10, LONG)
        assert {(delivery.job_id, delivery.attempt) for delivery in again} == {
            ("a", 2),
            ("b", 2),
            ("c", 1),
            ("d", 1),
        }
        assert await outbox.due_deliveries(10, LONG) == []
        # A sender whose lease expired can no longer postpone what another sender has.
        await outbox.postpone(dead[0], 0.0)
        await outbox.give_up(dead[1], "too late")
        assert await outbox.due_deliveries(10, LONG) == []
        a, b, c, d = sorted(again, key=lambda delivery: delivery.job_id)
        assert a.id == dead[0].id
        await outbox.delivered(a)
        await outbox.give_up(b, "410 Gone")
        await outbox.postpone(c, -1.0)
        await outbox.postpone(d, LONG)
        [last] = await outbox.due_deliveries(10, LONG)
        assert (last.id, last.attempt, last.url) == (c.id, 2, "https://example.com/hook")


@in_loop
async def test_a_host_with_many_deliveries_leaves_room_for_others(url: str) -> None:
    async with opened(url) as store:
        hosts = ["slow.example", "slow.example", "slow.example", "other.example", "last.example"]
        for number, host in enumerate(hosts):
            hook = Webhook(f"https://{host}/{number}", frozenset([WebhookEvent.COMPLETED]))
            await store.create(new_job(str(number), webhook=hook))
            await store.cancel(str(number))
        due = await store.outbox.due_deliveries(3, LONG, per_host=1, busy_hosts=["last.example"])
        assert [(one.job_id, one.host) for one in due] == [("0", "slow.example"), ("3", "other.example")]
        due = await store.outbox.due_deliveries(10, LONG, per_host=2)
        assert [one.job_id for one in due] == ["1", "2", "4"]


@in_loop
async def test_two_that_deliver_are_given_different_deliveries(url: str) -> None:
    async with opened(url) as one, opened(url) as other:
        for number in range(60):
            await one.create(new_job(str(number), webhook=webhook()))
            await one.cancel(str(number))
        leased: list[str] = []

        async def deliver(store: JobStore) -> None:
            while due := await store.outbox.due_deliveries(4, LONG):
                leased.extend(delivery.job_id for delivery in due)

        await asyncio.gather(*(deliver(store) for store in (one, other, one, other)))
        assert sorted(leased) == sorted(str(number) for number in range(60))
