"""Limits in device-seconds per minute: exact in time, shared by replicas, charged for what is accepted."""

import random
from dataclasses import replace

import pytest

from serve.capacity.rate_limits import RateLimits, TokenBucket
from serve.clients import EVERYBODY, Client
from serve.errors import InvalidRequestError, RateLimitError
from tests.unit.test_admission import request

ALICE, BOB = Client("alice", 4.0), Client("bob", 4.0)


def test_a_bucket_is_full_at_first_and_fills_as_time_goes_by() -> None:
    bucket = TokenBucket()
    assert bucket.take(45.0, now=1000.0) == 0
    assert bucket.take(20.0, now=1000.0) == 5.0
    assert bucket.take(20.0, now=1004.0) == 1.0
    assert bucket.take(16.0, now=1001.0) == 0
    assert bucket.take(0.5, now=1001.0) == 0.5
    assert bucket.take(0.0, now=1001.0) == 0


def test_it_holds_no_more_than_a_minute_however_long_nobody_comes() -> None:
    bucket = TokenBucket()
    assert bucket.take(60.0, now=0.0) == 0
    assert bucket.take(60.0, now=1e6) == 0
    assert bucket.take(1.0, now=1e6) == 1.0


def test_what_it_can_never_hold_passes_when_it_is_full_and_is_paid_off() -> None:
    bucket = TokenBucket()
    assert bucket.take(1.0, now=0.0) == 0
    assert bucket.take(150.0, now=0.0) == 1.0
    assert bucket.take(150.0, now=1.0) == 0
    assert bucket.take(1.0, now=1.0) == 91.0, "90 owed"
    assert bucket.take(0.0, now=90.0) == 1.0
    assert bucket.take(60.0, now=151.0) == 0, "full again"


def test_what_is_given_back_can_be_taken_again() -> None:
    bucket = TokenBucket()
    assert bucket.take(20.0, now=0.0) == 0
    assert bucket.take(40.0, now=0.0) == 0
    bucket.give_back(20.0)
    assert bucket.take(20.0, now=0.0) == 0
    assert bucket.take(1.0, now=0.0) == 1.0
    bucket = TokenBucket()
    bucket.take(20.0, now=0.0)
    bucket.give_back(20.0)
    assert bucket.take(61.0, now=0.0) == 0, "it was full"


def test_whoever_waits_as_told_is_let_in_and_nobody_gets_more_than_the_limit() -> None:
    """Beyond its rate, a client gets one minute's worth or one request. In eighths, so sums are exact."""
    chance = random.Random(5)
    bucket, now, taken_s, largest_s = TokenBucket(), 0.0, 0.0, 60.0
    for _ in range(2000):
        now += chance.randrange(0, 200) / 8
        cost_s = chance.randrange(0, 800) / 8
        if wait_s := bucket.take(cost_s, now):
            assert bucket.take(cost_s, now + wait_s - 0.125) > 0, "not sooner than it was told"
            now += wait_s
            assert bucket.take(cost_s, now) == 0
        taken_s += cost_s
        largest_s = max(largest_s, cost_s)
        assert taken_s <= now + largest_s


class Door:
    """Limits with a clock of their own. An image takes a second of work: 10 calls of two rows of sixteen."""

    def __init__(self, num_ingresses: int = 1) -> None:
        self.now = 50.0
        self.num_ingresses = num_ingresses
        self.limits = RateLimits(lambda: self.num_ingresses, lambda: self.now)

    def ask(self, client: Client, num_images: int) -> None:
        with self.limits.charged(client, request(num_images)):
            pass


def test_a_client_may_ask_for_its_limit_and_then_for_what_time_gives() -> None:
    door = Door()
    door.ask(ALICE, 3)
    with pytest.raises(
        RateLimitError, match=r"about 2\.00 device-seconds; this API key's limit of 4 per minute"
    ) as refusal:
        door.ask(ALICE, 2)
    assert (refusal.value.status, refusal.value.code) == (429, "rate_limit_exceeded")
    assert refusal.value.retry_after_s == 15
    door.ask(BOB, 4)
    door.now += 14.5
    with pytest.raises(RateLimitError) as refusal:
        door.ask(ALICE, 2)
    assert refusal.value.retry_after_s == 1
    door.now += 0.5
    door.ask(ALICE, 2)


def test_ingress_replicas_share_a_limit() -> None:
    door = Door(num_ingresses=4)
    door.ask(ALICE, 1)
    with pytest.raises(RateLimitError) as refusal:
        door.ask(ALICE, 1)
    assert refusal.value.retry_after_s == 60
    door.num_ingresses = 2  # each remaining replica has a larger share
    door.now += 30
    door.ask(ALICE, 1)


def test_what_is_refused_within_or_given_back_was_not_charged() -> None:
    door = Door()
    for _ in range(10):
        with pytest.raises(InvalidRequestError), door.limits.charged(ALICE, request(4)):
            raise InvalidRequestError("for another reason")
        with door.limits.charged(ALICE, request(4)) as give_back:
            give_back()
    door.ask(ALICE, 4)
    with pytest.raises(RateLimitError):
        door.ask(ALICE, 1)


def test_without_a_limit_or_a_cost_model_nothing_is_charged() -> None:
    door = Door()
    for _ in range(100):
        door.ask(EVERYBODY, 10)
        door.ask(Client("carol"), 10)
        with door.limits.charged(ALICE, replace(request(10), work_s=None)):
            pass
    door.ask(ALICE, 4)


def test_who_owes_is_refused_whatever_it_asks_for() -> None:
    now = 0.0
    limits = RateLimits(lambda: 1, lambda: now)
    limits.check(ALICE)
    with limits.charged(ALICE, replace(request(), work_s=6.0)):
        pass
    with pytest.raises(
        RateLimitError, match=r"limit of 4 device-seconds per minute is used up\. Try again in 30 s"
    ):
        limits.check(ALICE)
    limits.check(BOB)
    limits.check(EVERYBODY)
    now = 30.0
    limits.check(ALICE)
