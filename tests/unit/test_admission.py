"""Admission counts images and gives their places back. It refuses requests that cannot be in time."""

import asyncio
import time
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.engine.engine_config import EngineConfig
from deployments.engine.samplers import SamplerTables
from serve.calls.denoise_requests import preview_steps
from serve.capacity.admission import Admission, JobsWork
from serve.capacity.estimator import Estimator
from serve.errors import DeadlineTooEarlyError, DeadlineTooEarlyNowError, QueueFullError
from serve.generation import GenerationRequest
from tests.generation_requests import generation_request
from tests.unit.test_samplers import STABLE_DIFFUSION

SHAPE = (16, 16)
NO_JOBS = JobsWork()
# A call of two rows takes 0.1 s, of sixteen 0.8 s.
COST = CostModel(
    encode=Curve(1e-9, 1, 0.0),
    forward=StageCost(((SHAPE, Curve(0.1, 2, 0.05)),)),
    decode=StageCost(((SHAPE, Curve(1e-9, 1, 0.0)),)),
)


TABLES = SamplerTables(STABLE_DIFFUSION)
ESTIMATOR = Estimator(
    EngineConfig(max_rows=16, rows_per_forward=16, deterministic_rows=8, latent_shape=SHAPE, row_counts=None)
)


def admission(
    max_queue: int = 64, num_denoisers: int = 1, max_wait_s: float = 1000.0, jobs: JobsWork = NO_JOBS
) -> Admission:
    return Admission(max_queue, max_wait_s, lambda: num_denoisers, lambda: jobs)


def request(num_images: int = 1, deadline_s: float | None = None, **changes: Any) -> GenerationRequest:
    sampler, steps = changes.get("sampler", "DDIM"), 10
    asked = generation_request(
        num_images=num_images,
        num_inference_steps=steps,
        num_calls=TABLES.table(sampler, steps).num_calls,
        deadline=None if deadline_s is None else time.time() + deadline_s,
        **changes,
    )
    return replace(asked, work_s=ESTIMATOR.work_s(asked, COST))


def check(asked: GenerationRequest, cost: CostModel = COST, door: Admission | None = None) -> None:
    """Checks a request like the front desk, where it already has its places."""
    door = door or admission()
    with door.admitted(asked):
        door.check_deadline(asked, partial(ESTIMATOR.latency_s, asked, cost))


def test_a_full_queue_refuses_until_places_are_given_back() -> None:
    door = admission(max_queue=3)
    with door.admitted(request(2)):
        with (
            pytest.raises(
                QueueFullError, match="2 images are queued and 2 more were requested; at most 3"
            ) as refusal,
            door.admitted(request(2)),
        ):
            pass
        assert refusal.value.retry_after_s == 1
        with door.admitted(request(1)):
            pass
    with pytest.raises(ZeroDivisionError), door.admitted(request(3)):
        raise ZeroDivisionError
    with door.admitted(request(3)):
        pass


@pytest.mark.parametrize(
    ("accepted", "asked", "retry_after_s"),
    [
        ([10], 1, 1),  # a tenth of 10 s
        ([10], 5, 5),
        ([4, 4], 4, 2),  # two of eight must be done
        ([8], 10, 8),
        ([], 11, 1),  # never, but this is not said here
    ],
)
def test_at_a_full_queue_it_is_the_work_before_it_that_is_waited_for(
    accepted: list[int], asked: int, retry_after_s: int
) -> None:
    """An image is a second of work."""
    door = admission(max_queue=10)
    with ExitStack() as held:
        for num_images in accepted:
            held.enter_context(door.admitted(request(num_images)))
        with pytest.raises(QueueFullError) as refusal, door.admitted(request(asked)):
            pass
    assert refusal.value.retry_after_s == retry_after_s


def test_one_that_has_left_is_not_waited_for_however_long_it_stayed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    door = admission(max_queue=3)
    for _ in range(3):
        with suppress(asyncio.CancelledError), door.admitted(request(3)):
            clock[0] += 100
            raise asyncio.CancelledError
    with door.admitted(request(3)):
        with pytest.raises(QueueFullError) as refusal, door.admitted(request(1)):
            pass
        assert refusal.value.retry_after_s == 1


@pytest.mark.parametrize(
    ("changes", "takes"),
    [
        ({}, "1.00 s"),
        ({"sampler": "Heun"}, "1.90 s"),  # two model calls per step, except the last
        ({"num_images": 4}, "4.00 s"),
        ({"guidance_scale": 1.0, "num_images": 4}, "2.00 s"),
        ({"num_images": 10}, "16.00 s"),  # sixteen rows, then the other four
    ],
)
def test_one_that_is_too_early_whatever_the_load_is_told_what_it_takes(
    changes: dict[str, Any], takes: str
) -> None:
    with pytest.raises(DeadlineTooEarlyError, match=f"the request takes about {takes} alone") as refusal:
        check(request(deadline_s=0.5, **changes))
    check(request(deadline_s=float(takes.split(maxsplit=1)[0]) + 0.5, **changes))
    assert refusal.value.param == "deadline_s"
    assert refusal.value.status == 422


def test_a_deterministic_request_takes_what_its_fixed_forwards_take() -> None:
    """Its forwards have eight rows and take 0.4 s per call, although it fills only two."""
    with pytest.raises(DeadlineTooEarlyError, match=r"the request takes about 4\.00 s alone"):
        check(request(deadline_s=3.0, deterministic=True))


def test_padding_counts() -> None:
    """Three images are six rows, in forwards of eight."""
    padded = CostModel(COST.encode, replace(COST.forward, padded_to=(2, 4, 8, 16)), COST.decode)
    with pytest.raises(DeadlineTooEarlyError, match=r"the request takes about 4\.00 s alone"):
        check(request(3, deadline_s=3.5), padded)


def test_one_that_is_too_early_at_this_load_may_come_again() -> None:
    door = admission()
    with door.admitted(request(3)):
        with pytest.raises(
            DeadlineTooEarlyNowError, match=r"takes about 4\.00 s \(1\.00 s alone\)"
        ) as refusal:
            check(request(deadline_s=2.0), door=door)
        assert refusal.value.status == 429
        assert refusal.value.retry_after_s == 3  # rounded up: 2 s and the time of the test
        check(request(deadline_s=4.5), door=door)
    check(request(deadline_s=2.0), door=door)


def test_the_load_is_shared_by_the_replicas() -> None:
    """Work that three denoisers do in time is too much for one."""
    for num_denoisers, refusal in ((3, nullcontext()), (1, pytest.raises(DeadlineTooEarlyNowError))):
        door = admission(num_denoisers=num_denoisers)
        with door.admitted(request(3)), refusal:
            check(request(deadline_s=2.5), door=door)


@pytest.mark.parametrize(
    ("num_denoisers", "accepted_images", "wait", "retry_after_s"),
    [(1, [1, 1, 1], "3.0", 1), (4, [1] * 9, "2.2", 1), (1, [1, 8], "9.0", 7), (2, [4, 10], "7.0", 5)],
)
def test_past_the_longest_wait_requests_are_refused_and_told_when_to_come_again(
    num_denoisers: int, accepted_images: list[int], wait: str, retry_after_s: int
) -> None:
    """An image is 10 calls of two rows, each a sixteenth of 0.8 s: a second of work."""
    door = admission(max_wait_s=2.0, num_denoisers=num_denoisers)
    with ExitStack() as accepted:
        for num_images in accepted_images:
            accepted.enter_context(door.admitted(request(num_images)))
        with (
            pytest.raises(QueueFullError, match=f"wait for about {wait} s; at most 2 s") as refusal,
            door.admitted(request()),
        ):
            pass
        assert refusal.value.retry_after_s == retry_after_s
    with door.admitted(request()):
        pass


@pytest.mark.parametrize(
    ("own_images", "jobs", "wait", "retry_after_s"),
    [
        (0, JobsWork(work_s=9.0), "9.0", 4),
        (4, JobsWork(work_s=5.0), "9.0", 4),
        # Jobs replace finished jobs: of each second, own work gets four ninths.
        (4, JobsWork(work_s=5.0, is_refilled=True), "9.0", 9),
        (8, JobsWork(work_s=4.0, is_refilled=True), "12.0", 11),  # 7 of 8 must be done: 7/8 of 12 s
        (8, JobsWork(is_refilled=True), "8.0", 3),
        (0, JobsWork(work_s=9.0, is_refilled=True), "9.0", 9),
    ],
)
def test_jobs_under_way_are_waited_for_as_well(
    own_images: int, jobs: JobsWork, wait: str, retry_after_s: int
) -> None:
    door = admission(max_wait_s=5.0, jobs=jobs)
    with ExitStack() as accepted:
        if own_images:
            accepted.enter_context(door.admitted(request(own_images)))
        with (
            pytest.raises(QueueFullError, match=f"wait for about {wait} s; at most 5 s") as refusal,
            door.admitted(request()),
        ):
            pass
    assert refusal.value.retry_after_s == retry_after_s


def test_a_deadline_is_too_early_beside_the_rows_of_jobs() -> None:
    asked = request(deadline_s=2.5)
    check(asked, door=admission(jobs=JobsWork(rows=2.0)))
    with pytest.raises(DeadlineTooEarlyNowError, match=r"takes about 4\.00 s \(1\.00 s alone\)"):
        check(asked, door=admission(jobs=JobsWork(rows=6.0)))


@pytest.mark.parametrize(
    ("steps", "previews", "expected"),
    [(20, 3, {5, 10, 15}), (20, 0, set()), (4, 1, {2}), (1, 3, set()), (2, 3, {1})],
)
def test_previews_are_evenly_spaced(steps: int, previews: int, expected: set[int]) -> None:
    assert preview_steps(steps, previews) == expected
