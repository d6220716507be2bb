"""The job store, on SQLite and on a real PostgreSQL: no job is lost, and none is run twice."""

import asyncio
import itertools
import random
from dataclasses import replace
from unittest.mock import ANY

import pytest
from sqlalchemy import event, update

from serve.errors import IdempotencyKeyReusedError, InvalidRequestError
from serve.jobs.conditions import MAX_DEATHS
from serve.jobs.job import TRANSITIONS, IdempotencyKey, Job, JobState, WebhookEvent
from serve.jobs.records import Claim, Progress, UnderWay, Waiting
from serve.jobs.store import JobStore
from serve.jobs.tables import jobs
from tests.job_stores import (
    DEAD,
    LONG,
    MODEL,
    History,
    Transition,
    claim_one,
    counted,
    in_loop,
    new_job,
    opened,
    state_of,
    told,
    webhook,
)

STARTING, PROCESSING = JobState.STARTING, JobState.PROCESSING
SUCCEEDED, FAILED, CANCELED = JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED


def check_history(history: list[Transition]) -> None:
    """A history starts, takes only allowed transitions, and has a new token for each attempt."""
    assert history[0].state is STARTING
    assert history[0].attempt == 0
    for before, after in itertools.pairwise(history):
        assert after.state in TRANSITIONS[before.state]
        assert after.attempt == before.attempt + (after.state is PROCESSING)


# Accepting jobs.


@in_loop
async def test_a_job_is_read_as_it_was_created(url: str, history: History) -> None:
    hook, key = webhook(WebhookEvent.COMPLETED, WebhookEvent.LOGS), IdempotencyKey("k", "f")
    async with opened(url) as store:
        created = await store.create(new_job("a", webhook=hook, key=key, lifetime_s=60.0))
    async with opened(url) as store:  # like after a restart
        job = await store.get("a")
        assert job == created
        assert job.request == new_job("a").request
        assert (job.state, job.attempt, job.steps_done, job.num_steps) == (STARTING, 0, 0, 20)
        assert (job.webhook, job.output, job.error) == (hook, {}, None)
        assert job.deadline == pytest.approx(job.created_at + 60.0, abs=1e-3)
        assert (job.started_at, job.completed_at, job.data_removed) == (None, None, False)
        assert history.of("a") == [Transition(STARTING, 0, None)]
        assert await store.get("b") is None
        assert await store.cancel("b") is None


@in_loop
async def test_any_text_that_json_can_hold_is_kept(url: str) -> None:
    odd = "\x00 \ud800 \u2028 \U0001f984 '; DROP TABLE jobs; --"
    new = new_job("a", input={"prompt": odd, "nested": [None, 1.5, {"x": True}]})
    async with opened(url) as store:
        await store.create(replace(new, request=replace(new.request, prompt=odd, negative_prompt="")))
        job = await store.get("a")
    assert job is not None
    assert job.input == new.input
    assert (job.request.prompt, job.request.negative_prompt) == (odd, "")


@in_loop
async def test_an_idempotency_key_makes_one_job(url: str) -> None:
    async with opened(url) as store:
        first = await store.create(new_job("a", key=IdempotencyKey("k", "f")))
        assert await store.create(new_job("b", key=IdempotencyKey("k", "f"))) == first
        assert await store.get("b") is None
        assert (await store.create(new_job("c", key=IdempotencyKey("other", "f")))).id == "c"
        with pytest.raises(IdempotencyKeyReusedError) as raised:
            await store.create(new_job("d", key=IdempotencyKey("k", "another payload")))
        assert (raised.value.status, raised.value.param) == (422, "Idempotency-Key")
        assert await store.get("d") is None
        await store.cancel("a")
        again = await store.create(new_job("e", key=IdempotencyKey("k", "f")))
        assert (again.id, again.state) == ("a", CANCELED)


@in_loop
async def test_of_creations_at_once_with_one_key_one_makes_the_job(url: str) -> None:
    async with opened(url) as one, opened(url) as other:
        created = await asyncio.gather(
            *(
                [one, other][number // 100 % 2].create(
                    new_job(f"job {number}", key=IdempotencyKey(f"key {number % 100}", "f"))
                )
                for number in range(1000)
            )
        )
        ids = [{job.id for job in created[key::100]} for key in range(100)]
        assert all(len(of_key) == 1 for of_key in ids)
        assert len(set.union(*ids)) == 100
        assert await counted(one) == {STARTING: 100}


@in_loop
async def test_keys_that_come_in_opposite_orders_lock_nobody_out(postgresql_url: str) -> None:
    """Two batches that wait for each other's key would be a deadlock, and the database would end one."""
    async with opened(postgresql_url) as one, opened(postgresql_url) as other:
        for turn in range(25):
            keys = [IdempotencyKey(f"{turn} {number}", "f") for number in range(200)]
            created = await asyncio.gather(
                *(one.create(new_job(f"{turn} one {key.key}", key=key)) for key in keys),
                *(other.create(new_job(f"{turn} other {key.key}", key=key)) for key in reversed(keys)),
            )
            ids = [job.id for job in created]
            assert ids[:200] == ids[:199:-1], "of either store, the same job for the same key"


@in_loop
async def test_what_is_created_at_once_shares_transactions_and_nothing_else(
    url: str, history: History
) -> None:
    async with opened(url) as store:
        commits: list[None] = []
        event.listen(store.database.writer.sync_engine, "commit", lambda _: commits.append(None))
        news = [new_job(f"job {number}", key=IdempotencyKey(f"{number}", "f")) for number in range(50)]
        news.append(new_job("reused", key=IdempotencyKey("7", "another payload")))
        *created, refused = await asyncio.gather(*map(store.create, news), return_exceptions=True)
        ids = [job.id for job in created if isinstance(job, Job)]
        assert ids == [f"job {number}" for number in range(50)]
        assert isinstance(refused, IdempotencyKeyReusedError)
        assert len(commits) <= 3
        assert {job.id for job in (await store.page(100)).items} == set(ids)
        assert [history.states(job_id) for job_id in ids] == [[(STARTING, 0)]] * 50


@in_loop
async def test_a_key_is_free_again_when_it_is_old(url: str) -> None:
    async with opened(url) as store:
        await store.create(new_job("a", key=IdempotencyKey("k", "f")))
        await store.housekeeping.sweep()
        assert (await store.create(new_job("b", key=IdempotencyKey("k", "f")))).id == "a"
        await store.housekeeping.sweep(key_age_s=-1)
        assert (await store.create(new_job("c", key=IdempotencyKey("k", "another")))).id == "c"
        assert await state_of(store, "a") is STARTING


@in_loop
async def test_jobs_are_their_owners(url: str) -> None:
    owners = ("alice", "bob", "")
    async with opened(url) as store:
        for owner in owners:
            for number in (1, 2):
                await store.create(new_job(f"{owner} {number}", owner=owner))
        for owner, other in itertools.permutations(owners, 2):
            job = await store.get(f"{owner} 1", owner)
            assert job is not None
            assert job.owner == owner
            assert await store.get(f"{owner} 1", other) is None
            assert await store.cancel(f"{owner} 1", other) is None
            assert await state_of_owned(store, f"{owner} 1", owner) is STARTING
        for owner in owners:
            newest = await store.page(1, owner=owner)
            assert [job.id for job in newest.items] == [f"{owner} 2"]
            older = await store.page(1, newest.next, owner)
            assert [job.id for job in older.items] == [f"{owner} 1"]
            assert older.next is None
            canceled = await store.cancel(f"{owner} 1", owner)
            assert canceled is not None
            assert canceled.state is CANCELED
        claimed = await store.queue.claim(20, LONG)
        assert [job.owner for job in claimed] == list(owners), "they are run whosever they are"


async def state_of_owned(store: JobStore, job_id: str, owner: str) -> JobState:
    job = await store.get(job_id, owner)
    assert job is not None
    return job.state


@in_loop
async def test_an_idempotency_key_is_its_owners(url: str) -> None:
    async with opened(url) as store:
        owners = ("", "alice", "bob")
        for owner in owners:
            key = IdempotencyKey("k", f"{owner}'s")
            news = [new_job(f"{owner} {number}", key=key, owner=owner) for number in range(3)]
            made = await asyncio.gather(*map(store.create, news))
            assert {(job.id, job.owner) for job in made} == {(f"{owner} 0", owner)}
        with pytest.raises(IdempotencyKeyReusedError):
            await store.create(new_job("x", key=IdempotencyKey("k", "bob's"), owner="alice"))
        for owner in owners:
            assert [job.id for job in (await store.page(10, owner=owner)).items] == [f"{owner} 0"]


@in_loop
async def test_pages_go_both_ways_and_do_not_shift(url: str) -> None:
    async with opened(url) as store:

        def ids(jobs: tuple[Job, ...]) -> str:
            return "".join(job.id for job in jobs)

        empty = await store.page(2)
        assert (empty.items, empty.next, empty.previous) == ((), None, None)
        for job_id in "abcde":
            await store.create(new_job(job_id))
        newest = await store.page(2)
        assert (ids(newest.items), newest.previous) == ("ed", None)
        await store.create(new_job("f"))
        middle = await store.page(2, newest.next)
        assert ids(middle.items) == "cb"
        oldest = await store.page(2, middle.next)
        assert (ids(oldest.items), oldest.next) == ("a", None)
        back = await store.page(2, oldest.previous)
        assert ids(back.items) == "cb"
        assert ids((await store.page(2, back.next)).items) == "a"
        newer = await store.page(2, back.previous)
        assert ids(newer.items) == "ed"
        newer = await store.page(2, newer.previous)
        assert (ids(newer.items), newer.previous) == ("f", None)
        assert ids((await store.page(6)).items) == "fedcba"
        assert (await store.page(6)).next is None
        for cursor in ("", "before-", "after-x", "before-٣", "sideways-1", "before-" + "9" * 30):
            with pytest.raises(InvalidRequestError) as raised:
                await store.page(2, cursor)
            assert raised.value.param == "cursor"


# Claims.


@in_loop
async def test_claims_go_by_priority_and_then_by_age(url: str) -> None:
    async with opened(url) as store:
        for job_id, priority in [("a", 0), ("b", -1), ("c", 2), ("d", 0), ("e", 2), ("f", 0)]:
            await store.create(new_job(job_id, priority))
        jobs = [job for job_id in "abcdef" if (job := await store.get(job_id))]
        assert [await store.queue_position(job) for job in jobs] == [2, 5, 0, 3, 1, 4]
        assert [job.id for job in await store.queue.claim(6, LONG)] == ["c", "e", "a"]
        # Jobs that have begun are no longer in the queue.
        assert [await store.queue_position(job) for job in jobs if job.id in "dfb"] == [2, 0, 1]
        taken = await store.get("c")
        assert taken is not None
        assert await store.queue_position(taken) is None
        assert [job.id for job in await store.queue.claim(20, LONG)] == ["d", "f", "b"]
        assert await store.queue.claim(20, LONG) == []


@in_loop
async def test_a_claim_takes_as_many_as_its_images_allow_and_the_last_may_go_over(url: str) -> None:
    async with opened(url) as store:
        for job_id, num_images in [("a", 1), ("b", 3), ("c", 10), ("d", 1), ("e", 1)]:
            new = new_job(job_id)
            await store.create(replace(new, request=replace(new.request, num_images=num_images)))
        assert (await store.look()).may_claim
        assert [job.id for job in await store.queue.claim(5, LONG)] == ["a", "b", "c"]
        assert [job.id for job in await store.queue.claim(1, LONG)] == ["d"]
        assert [job.id for job in await store.queue.claim(5, LONG)] == ["e"]
        assert not (await store.look()).may_claim


@in_loop
async def test_two_applications_on_one_database_run_their_own_models_jobs(url: str) -> None:
    async with opened(url, models=["cats"]) as cats, opened(url, models=["dogs", "wolves"]) as dogs:
        for job_id, model in [("1", "dogs"), ("2", "cats"), ("3", "bears"), ("4", "wolves"), ("5", "cats")]:
            await cats.create(new_job(job_id, model=model))
        made = [job for job_id in "12345" if (job := await cats.get(job_id))]
        assert [await dogs.queue_position(job) for job in made] == [0, 0, 0, 0, 1]
        assert [job.id for job in await cats.queue.claim(20, DEAD)] == ["2", "5"]
        assert (await cats.under_way()).is_more_waiting, "as the lease has run out"
        assert [job.id for job in await dogs.queue.claim(20, LONG)] == ["1", "4"]
        assert {job.id for job in (await dogs.under_way()).jobs} == {"1", "4"}
        assert not (await dogs.under_way()).is_more_waiting
        assert not (await dogs.look()).may_claim
        assert (await cats.under_way()).jobs == []
        assert await state_of(cats, "3") is STARTING, "nobody serves it"
        assert {model: one.jobs for model, one in (await cats.housekeeping.waiting()).items()} == {"bears": 1}


@in_loop
async def test_what_waits_is_what_nobody_has_begun(url: str) -> None:
    async with opened(url) as store:
        assert await store.housekeeping.waiting() == {}
        for job_id, priority, age_s in [("begun", 1, 900.0), ("old", 0, 300.0), ("new", 0, 0.0)]:
            await store.create(new_job(job_id, priority))
            async with store.database.write() as connection:
                older = {"created_at": jobs.c.created_at - age_s}
                await connection.execute(update(jobs).where(jobs.c.id == job_id).values(older))
        await store.queue.claim(1, LONG)
        await store.cancel("new")
        await store.create(new_job("of another model", model="another"))
        waiting = await store.housekeeping.waiting()
        assert waiting == {MODEL: Waiting(1, ANY), "another": Waiting(1, ANY)}
        assert waiting["another"].oldest_s < 300 <= waiting[MODEL].oldest_s < 900


@in_loop
async def test_what_is_under_way_is_what_runners_hold(url: str) -> None:
    async with opened(url) as store:
        assert await store.under_way() == UnderWay([], is_more_waiting=False)
        for job_id in "abc":
            await store.create(new_job(job_id))
        assert await store.under_way() == UnderWay([], is_more_waiting=True)
        given_back = await claim_one(store)
        lost = await claim_one(store, DEAD)
        assert await store.queue.give_back(given_back)
        [done] = [job for job in await store.queue.claim(4, LONG, running=[lost.job_id]) if job.id == "c"]
        assert await store.queue.succeed(Claim.of(done))
        under_way = await store.under_way()
        assert [job.id for job in under_way.jobs] == ["a"]
        assert under_way.is_more_waiting, "the one whose runner died is"
        assert await store.queue.claim(1, LONG, running=["a"])
        under_way = await store.under_way()
        assert {job.id for job in under_way.jobs} == {"a", "b"}
        assert not under_way.is_more_waiting


@in_loop
async def test_a_job_from_creation_to_success(url: str, history: History) -> None:
    async with opened(url) as store:
        await store.create(new_job("a"))
        [job] = await store.queue.claim(10, LONG)
        claim = Claim.of(job)
        assert (job.state, job.attempt) == (PROCESSING, 1)
        assert job.started_at is not None
        assert job.started_at >= job.created_at
        assert await store.queue.record_progress({claim: Progress(12)}) == {"a"}
        assert await store.queue.record_image(claim, 1, "a/1.webp", 14)
        now = await store.get("a")
        assert now is not None
        assert (now.steps_done, now.output) == (14, {1: "a/1.webp"})
        assert await store.queue.renew([claim], LONG) == {"a"}
        assert await store.queue.succeed(claim, {0: "a/0.webp"})
        done = await store.get("a")
        assert done is not None
        assert (done.state, done.steps_done, done.started_at) == (SUCCEEDED, 20, job.started_at)
        assert done.output == {0: "a/0.webp", 1: "a/1.webp"}
        assert done.completed_at is not None
        assert done.completed_at >= job.started_at
        went_through = history.of("a")
        check_history(went_through)
        assert [transition.state for transition in went_through] == [STARTING, PROCESSING, SUCCEEDED]
        assert await store.cancel("a") == done


@in_loop
async def test_what_an_old_token_writes_is_refused(url: str, history: History) -> None:
    async with opened(url) as store, opened(url) as other:
        await store.create(new_job("a"))
        old = await claim_one(store, DEAD)
        # Nobody has taken over yet, so a slow runner may go on.
        assert await store.queue.renew([old], DEAD) == {"a"}
        assert await store.queue.record_progress({old: Progress(3)}) == {"a"}
        new = await claim_one(other)
        assert new.attempt == old.attempt + 1
        before = await store.get("a")
        assert await refused(store, old)
        assert await store.get("a") == before
        assert await other.queue.succeed(new)
        assert await refused(other, new)
        assert await refused(store, Claim("no such job", 1))
        assert history.states("a") == [
            (STARTING, 0),
            (PROCESSING, 1),
            (PROCESSING, 2),
            (SUCCEEDED, 2),
        ]
        check_history(history.of("a"))


async def refused(store: JobStore, claim: Claim) -> bool:
    """Whether every action with the claim is refused."""
    return not any(
        [
            await store.queue.renew([claim], LONG),
            await store.queue.begin(claim),
            await store.queue.record_progress({claim: Progress(20)}),
            await store.queue.record_image(claim, 0, "key", 5),
            await store.queue.succeed(claim),
            await store.queue.succeed(claim, {0: "key"}),
            await store.queue.fail(claim, "error"),
            await store.queue.retry(claim, "error"),
            await store.queue.give_back(claim),
        ]
    )


@in_loop
async def test_several_are_renewed_and_recorded_at_once(url: str) -> None:
    async with opened(url) as store:
        for job_id in "abc":
            await store.create(new_job(job_id))
        a, b, c = [Claim.of(job) for job in await store.queue.claim(6, LONG)]
        await store.cancel("b")
        assert await store.queue.renew([a, b, c], DEAD) == {"a", "c"}
        assert await store.queue.held([a, b, c]) == {"a", "c"}
        assert await store.queue.renew([], LONG) == await store.queue.held([]) == set()
        assert await store.queue.record_progress({a: Progress(1), b: Progress(2), c: Progress(3)}) == {
            "a",
            "c",
        }
        assert await store.queue.record_progress({}) == set()
        done = [job.steps_done for job_id in "abc" if (job := await store.get(job_id))]
        assert done == [1, 0, 3]
        assert [job.id for job in await store.queue.claim(6, LONG)] == ["a", "c"]  # their leases have run out


@in_loop
async def test_images_that_are_recorded_at_once_are_all_kept(url: str) -> None:
    async with opened(url) as store:
        await store.create(new_job("a"))
        claim = await claim_one(store)
        keys = {index: f"a/{index}.webp" for index in range(10)}
        assert all(
            await asyncio.gather(
                *(store.queue.record_image(claim, index, key, 5) for index, key in keys.items())
            )
        )
        job = await store.get("a")
        assert job is not None
        assert job.output == keys


@in_loop
async def test_a_job_whose_runners_die_is_failed_with_the_reason(url: str, history: History) -> None:
    async with opened(url) as store:
        await store.create(new_job("a"))
        for attempt in (1, 2, 3):
            claim = await claim_one(store, DEAD)
            assert claim.attempt == attempt
            assert await store.queue.begin(claim)
        await store.create(new_job("b"))
        assert [job.id for job in await store.queue.claim(10, LONG)] == ["b"]
        assert (await store.look()).needs_sweep
        [job] = await store.housekeeping.sweep()
        assert (job.id, job.state) == ("a", FAILED)
        assert "in 3 attempts" in (job.error or "")
        went_through = history.of("a")
        check_history(went_through)
        assert went_through[-1].reason == job.error
        assert await store.housekeeping.sweep() == []


@in_loop
async def test_a_sweep_fails_what_no_claim_comes_for(url: str) -> None:
    async with opened(url, max_attempts=1) as store:
        await store.create(new_job("a"))
        await store.create(new_job("b"))
        for lease_s in (LONG, DEAD):
            await store.queue.begin(await claim_one(store, lease_s))
        assert [(job.id, job.state) for job in await store.housekeeping.sweep()] == [("b", FAILED)]
        assert await state_of(store, "a") is PROCESSING


@in_loop
async def test_given_back_a_job_waits_as_before_and_the_token_is_spent(url: str, history: History) -> None:
    async with opened(url) as store:
        await store.create(new_job("a"))
        for attempt in range(1, 6):  # more often than allowed without progress
            claim = await claim_one(store)
            assert claim.attempt == attempt
            assert await store.queue.give_back(claim)
            assert await refused(store, claim)
            assert await state_of(store, "a") is STARTING
        for _ in range(3):
            assert await store.queue.begin(await claim_one(store, DEAD))
        assert await store.queue.claim(1, LONG) == []
        await store.housekeeping.sweep()
        assert await state_of(store, "a") is FAILED
        check_history(history.of("a"))


@in_loop
async def test_a_runner_that_dies_does_not_count_against_what_only_waited_in_it(url: str) -> None:
    async with opened(url, max_attempts=1) as store:
        await store.create(new_job("a"))
        for _ in range(5):
            await claim_one(store, DEAD)
            assert await store.housekeeping.sweep() == []
        claim = await claim_one(store, DEAD)
        assert await store.queue.begin(claim)
        assert [(job.id, job.state) for job in await store.housekeeping.sweep()] == [("a", FAILED)]
        assert not await store.queue.begin(claim)


@in_loop
async def test_a_runner_does_not_take_itself_for_dead(url: str) -> None:
    """The runner's leases have expired, as after a database outage, and it is the first to come back."""
    async with opened(url, max_attempts=1) as store:
        for job_id in "ab":
            await store.create(new_job(job_id))
        [a, b] = [Claim.of(job) for job in await store.queue.claim(4, DEAD)]
        assert await store.queue.begin(a)
        assert await store.queue.claim(4, LONG, running=["a", "b"]) == []
        assert await store.housekeeping.sweep(running=["a", "b"]) == []
        assert await store.queue.held([a, b]) == {"a", "b"}
        assert [job.id for job in await store.queue.claim(4, LONG, running=["a"])] == ["b"]
        assert [job.id for job in await store.housekeeping.sweep(running=["b"])] == ["a"]
        assert await state_of(store, "a") is FAILED


@in_loop
async def test_a_job_that_no_runner_survives_is_not_handed_to_all(url: str) -> None:
    async with opened(url) as store:
        await store.create(new_job("a"))
        for _ in range(MAX_DEATHS):
            await claim_one(store, DEAD)
        assert await store.queue.claim(1, LONG) == []
        await store.housekeeping.sweep()
        assert await state_of(store, "a") is FAILED


@in_loop
async def test_attempts_count_only_while_the_job_comes_no_further(url: str, history: History) -> None:
    async with opened(url) as store:
        await store.create(new_job("a"))
        for steps in range(1, 6):  # more often than allowed without progress, each time one step further
            assert await store.queue.record_progress({await claim_one(store, DEAD): Progress(steps)}) == {"a"}
        for steps in (3, 4):  # it only reaches its earlier progress again
            await store.queue.record_progress({await claim_one(store, DEAD): Progress(steps)})
        assert await store.queue.claim(1, LONG) == []
        [job] = await store.housekeeping.sweep()
        assert job.steps_done == 5
        assert await state_of(store, "a") is FAILED
        check_history(history.of("a"))


@in_loop
async def test_another_image_is_further_however_few_its_steps(url: str) -> None:
    async with opened(url) as store:
        await store.create(new_job("a"))
        await store.queue.record_progress({await claim_one(store, DEAD): Progress(15)})
        for index in range(5):
            assert await store.queue.record_image(await claim_one(store, DEAD), index, "key", 4 * index)
        assert await claim_one(store)


@in_loop
async def test_a_retry_is_another_attempt_until_there_are_none(url: str, history: History) -> None:
    async with opened(url) as store:
        await store.create(new_job("a"))
        for attempt in (1, 2):
            claim = await claim_one(store)
            assert await store.queue.retry(claim, f"error {attempt}")
            assert await refused(store, claim)
            assert await state_of(store, "a") is STARTING
        assert await store.queue.retry(await claim_one(store), "the last error")
        job = await store.get("a")
        assert job is not None
        assert (job.state, job.error) == (FAILED, "the last error")
        went_through = history.of("a")
        check_history(went_through)
        reasons = [transition.reason for transition in went_through]
        assert reasons == [None, None, "error 1", None, "error 2", None, "the last error"]


@in_loop
async def test_a_failure_is_final_at_once(url: str) -> None:
    async with opened(url) as store:
        await store.create(new_job("a"))
        claim = await claim_one(store)
        assert await store.queue.fail(claim, "it is poisonous")
        assert await refused(store, claim)
        job = await store.cancel("a")
        assert job is not None
        assert (job.state, job.error) == (FAILED, "it is poisonous")


@in_loop
async def test_canceled_whether_it_is_begun_or_not(url: str, history: History) -> None:
    async with opened(url) as store:
        await store.create(new_job("a"))
        claim = await claim_one(store)
        await store.create(new_job("b"))
        for job_id in "ab":
            job = await store.cancel(job_id)
            assert job is not None
            assert job.state is CANCELED
            assert job.completed_at is not None
            assert await store.cancel(job_id) == job
        assert await refused(store, claim)
        assert await store.queue.claim(10, LONG) == []
        assert history.states("a") == [(STARTING, 0), (PROCESSING, 1), (CANCELED, 1)]
        assert history.states("b") == [(STARTING, 0), (CANCELED, 0)]


@in_loop
async def test_past_its_deadline_a_job_is_not_begun_and_is_canceled(url: str) -> None:
    async with opened(url) as store:
        await store.create(new_job("late", lifetime_s=-1.0))
        await store.create(new_job("in time", lifetime_s=LONG))
        assert [job.id for job in await store.queue.claim(10, LONG)] == ["in time"]
        [ended] = await store.housekeeping.sweep()
        assert (ended.id, ended.state) == ("late", CANCELED)
        assert "deadline" in (ended.error or "")
        assert await store.housekeeping.sweep() == []
        async with store.database.write() as connection:  # time goes by
            await connection.execute(update(jobs).values(deadline=1.0))
        [ended] = await store.housekeeping.sweep()
        assert (ended.id, ended.state) == ("in time", CANCELED)
        assert await refused(store, Claim("in time", 1))


@in_loop
async def test_two_runners_that_race_begin_each_job_once(url: str, history: History) -> None:
    num_jobs = 1000
    async with opened(url) as one, opened(url) as other:
        for start in range(0, num_jobs, 100):
            await asyncio.gather(
                *(
                    [one, other][number % 2].create(new_job(f"job {number}", priority=number % 3))
                    for number in range(start, start + 100)
                )
            )
        begun: list[str] = []

        async def work(store: JobStore, limit: int) -> None:
            while claimed := await store.queue.claim(limit, LONG):
                begun.extend(job.id for job in claimed)
                for job in claimed:
                    assert await store.queue.succeed(Claim.of(job))

        await asyncio.gather(*(work(store, limit) for store in (one, other) for limit in (1, 7, 30)))
        assert sorted(begun) == sorted(f"job {number}" for number in range(num_jobs))
        assert await counted(one) == {SUCCEEDED: num_jobs}
        for job_id in random.Random(1).sample(begun, 20):
            assert history.states(job_id) == [(STARTING, 0), (PROCESSING, 1), (SUCCEEDED, 1)]


@in_loop
async def test_whatever_runners_do_at_once_each_job_ends_once(url: str, history: History) -> None:
    """Runners die, fail, give back and write late, while clients cancel."""
    chance = random.Random(3)
    job_ids = [f"job {number}" for number in range(60)]
    ends: list[str] = []  # ids of jobs that runners were told they ended

    async def run(store: JobStore, late: list[Claim]) -> None:
        while (counts := await counted(store))[STARTING] + counts[PROCESSING] > 0:
            lease_s = chance.choice([DEAD, LONG])
            late += [Claim.of(job) for job in await store.queue.claim(chance.randint(1, 5), lease_s)]
            await store.queue.record_progress({claim: Progress(chance.randint(0, 20)) for claim in late})
            await store.queue.renew(chance.sample(late, len(late) // 2), chance.choice([DEAD, LONG]))
            for claim in chance.sample(late, min(3, len(late))):
                match chance.randint(0, 4):
                    case 0:
                        ends.extend([claim.job_id] * await store.queue.succeed(claim))
                    case 1:
                        ends.extend([claim.job_id] * await store.queue.fail(claim, "error"))
                    case 2:
                        await store.queue.retry(claim, "error")
                    case 3:
                        await store.queue.give_back(claim)
                    case _:
                        await store.queue.record_image(claim, 0, "key", 5)
            if chance.random() < 0.1:
                await store.cancel(chance.choice(job_ids))
            await store.housekeeping.sweep()

    async with opened(url) as one, opened(url) as other:
        for job_id in job_ids:
            await one.create(new_job(job_id, webhook=webhook(WebhookEvent.COMPLETED)))
        await asyncio.gather(*(run(store, []) for store in (one, other, one, other)))
        for job_id in job_ids:
            went_through = history.of(job_id)
            check_history(went_through)
            assert went_through[-1].state is await state_of(one, job_id)
            assert went_through[-1].state.is_final
        assert len(ends) == len(set(ends))
        # Each webhook hears of the job's only end.
        deliveries = await told(one)
        assert sorted(job_id for job_id, _, _ in deliveries) == sorted(job_ids)
        for job_id, _, payload in deliveries:
            assert payload["status"] == await state_of(one, job_id)


# Retention.


@in_loop
async def test_what_is_over_for_long_loses_its_data_and_then_goes(url: str, history: History) -> None:
    async with opened(url) as store:
        for job_id in "abc":
            new = new_job(job_id, webhook=webhook())
            await store.create(replace(new, request=replace(new.request, negative_prompt="blue")))
        for claim in [Claim.of(job) for job in await store.queue.claim(4, LONG)]:
            await store.queue.record_image(claim, 0, f"{claim.job_id}/0.webp", 10)
            await store.queue.succeed(claim)
        assert await store.housekeeping.expired(LONG, 10) == []
        expired = await store.housekeeping.expired(-60, 10)  # ended before a minute from now
        assert [(job.id, job.output) for job in expired] == [("a", {0: "a/0.webp"}), ("b", {0: "b/0.webp"})]
        assert [job.id for job in await store.housekeeping.expired(-60, 1)] == ["a"]
        await store.housekeeping.remove_data(expired[:1])
        assert [job.id for job in await store.housekeeping.expired(-60, 10)] == ["b"]
        job = await store.get("a")
        assert job is not None
        assert (job.state, job.data_removed, job.input, job.output) == (SUCCEEDED, True, {}, {})
        assert (job.request.prompt, job.request.negative_prompt) == ("", None)
        assert await store.housekeeping.old(LONG, 10) == []
        old = await store.housekeeping.old(-60, 10)
        assert [job.id for job in old] == ["a"]
        await store.housekeeping.forget(old)
        assert await store.get("a") is None
        assert {job_id for job_id, _, _ in await told(store)} == {"b"}
        assert await state_of(store, "c") is STARTING
