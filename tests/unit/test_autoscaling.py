"""The autoscaling policy, on contexts like those of Serve's controller."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from deployments.work import Tally, Work
from serve.capacity.autoscaling import Aim, Arrivals, Load, Reports, WorkPolicy, replicas_needed, reports_of
from serve.config.app import AppConfig

AIM = {"utilization": 0.7, "drain_s": 60.0, "cold_start_s": 20.0, "downscale_delay_s": 100.0}


def taken_in(number: float, seconds: float) -> dict[str, float]:
    """Reports of a replica that has accepted and done `number` requests of `seconds` each."""
    return {
        "work_s": 0.0,
        "accepted_s": number * seconds,
        "accepted_s2": number * seconds**2,
        "accepted": float(number),
    }


NOTHING = taken_in(0, 0.0)


def context(
    reports: Sequence[Sequence[tuple[float, Mapping[str, float]]]],
    target: int | None = None,
    queued: float = 0.0,
    now: float = 1000.0,
    state: dict[str, Any] | None = None,
    look_back_s: float = 15.0,
) -> AutoscalingContext:
    """reports: (time, stats) of each replica"""
    series: dict[str, dict[str, list[TimeStampedValue]]] = {}
    for replica, samples in enumerate(reports):
        for time, stats in samples:
            for name, value in stats.items():
                series.setdefault(name, {}).setdefault(f"replica {replica}", []).append(
                    TimeStampedValue(time, value)
                )
    return AutoscalingContext(
        deployment_id=DeploymentID("Denoiser", "default"),
        deployment_name="Denoiser",
        app_name="default",
        current_num_replicas=len(reports),
        target_num_replicas=len(reports) if target is None else target,
        running_replicas=[],
        total_num_requests=queued,
        total_queued_requests=queued,
        aggregated_metrics={},
        raw_metrics=series,  # type: ignore[arg-type]
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=100,
        policy_state=state or {},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=now,
        config=AutoscalingConfig(look_back_period_s=look_back_s),
    )


@pytest.mark.parametrize(
    ("load", "needed"),
    [
        (Load(1, work_s=0.0, arriving=0.0), 0),
        (Load(1, work_s=0.5, arriving=0.0), 1),
        (Load(4, work_s=10.0, arriving=0.65), 1),
        (Load(4, work_s=10.0, arriving=0.75), 2),  # one would be busier than 70%
        (Load(1, work_s=60.0, arriving=0.0), 1),
        (Load(1, work_s=140.0, arriving=0.0), 3),  # 80 s are missing
        (Load(3, work_s=140.0, arriving=0.0), 3),  # they already run: no cold start
        (Load(2, work_s=60.0, arriving=3), 5),
        (Load(0, work_s=100.0, arriving=0.0), 3),
    ],
)
def test_enough_replicas_for_what_arrives_and_for_the_queue(load: Load, needed: int) -> None:
    assert replicas_needed(load, Aim(**AIM)) == needed


def test_arrivals_are_read_from_what_stages_report() -> None:
    work = Work()
    before = work.stats()
    with work.of(12.0), work.of(4.0):
        ctx = context([[(985.0, before), (1000.0, work.stats())], [(995.0, before)]], queued=3.0)
    arrived = Arrivals(2, 16.0, 12.0**2 + 4.0**2)
    assert reports_of(ctx) == Reports(waiting=3.0, held_s=16.0, arrived=arrived, ever=arrived)
    assert work.stats() == {"work_s": 0.0, "accepted_s": 16.0, "accepted_s2": 160.0, "accepted": 2}


@pytest.mark.parametrize("order", list(itertools.permutations((0.1, 0.2, 0.3))))
def test_what_is_done_leaves_nothing_for_which_a_replica_would_stay(order: tuple[float, ...]) -> None:
    tally = Tally()
    for seconds in (0.1, 0.2, 0.3):
        tally.accept(seconds)
    for seconds in order:
        tally.finish(seconds)
    assert tally.held_s == 0.0
    reports = [(985.0, tally.stats()), (1000.0, tally.stats())]
    assert replicas_needed(Load(1, work_s=tally.held_s, arriving=0.0), Aim(**AIM)) == 0
    past = {"needed": [(800.0, 0)]}
    assert WorkPolicy(**AIM)(context([reports], target=1, state=past))[0] == 0


def test_without_reports_replicas_stay_as_many_as_there_are_meant_to_be() -> None:
    assert WorkPolicy(**AIM)(context([], target=3))[0] == 3
    assert WorkPolicy(**AIM)(context([[(1000.0, NOTHING)]], target=2))[0] == 2


def test_nonsense_does_not_raise(caplog: pytest.LogCaptureFixture) -> None:
    incomplete = {"accepted_s": 1.0, "accepted": 1.0}
    ctx = context([[(990.0, incomplete), (1000.0, incomplete)]], target=2)
    assert WorkPolicy(**AIM)(ctx) == (2, {})
    assert "Denoiser: keeping the current number of replicas" in caplog.text


def test_replicas_go_only_when_they_were_not_needed_for_the_whole_delay() -> None:
    policy, state, target, history = WorkPolicy(**AIM), {}, 4, []
    for now in range(0, 400, 10):
        # a burst of 150 s of work at 100 s, else nothing
        stats = NOTHING | {"work_s": 150.0 if now == 100 else 1.0}
        target, state = policy(
            context([[(now - 5, stats), (now, stats)]] * target, target=target, now=now, state=state)
        )
        history.append((now, target))
    targets = dict(history)
    assert targets[90] == 4, "replicas went before the delay was over"
    assert [targets[now] for now in (100, 190)] == [13, 13], "9 more do the missing 360 s in 40 s"
    assert targets[390] == 1
    changes = [after for before, after in itertools.pairwise(history) if before[1] != after[1]]
    assert len(changes) == 2, f"it flaps: {changes}"


def test_steady_random_load_changes_little() -> None:
    """Poisson arrivals of 10 s of work, 3 per second for ten minutes: hardly a change after minute five."""
    rng = random.Random(1)
    policy, state, target = WorkPolicy(**AIM), {}, 1
    work_s, accepted, reports, targets = 0.0, 0, [], []
    for now in range(600):
        arrived = sum(rng.random() < 0.003 for _ in range(1000))
        accepted += arrived
        work_s = max(0.0, work_s + 10.0 * arrived - target)
        totals = taken_in(accepted, 10.0) | {"work_s": work_s}
        reports = [*reports[-15:], (float(now), totals)]
        targets.append(target)
        others = [[(float(now), NOTHING)]] * (target - 1)
        target, state = policy(context([reports, *others], target=target, now=now, state=state))
    assert 38 <= targets[-1] <= 56, "3 arrivals of 10 s in a second, at 70%, keep 43 busy"
    changes = [after - before for before, after in itertools.pairwise(targets[300:]) if before != after]
    turns = sum((before > 0) != (after > 0) for before, after in itertools.pairwise(changes))
    assert turns <= 2, f"it flaps: {targets[300:]}"


def test_the_configuration_is_one_that_serve_takes() -> None:
    config = AppConfig.model_validate(
        {"denoiser": {"min_replicas": 0, "max_replicas": 8, "autoscaling": {"downscale_delay_s": 77}}}
    )
    work = AutoscalingConfig(**config.autoscaling_of("denoiser").autoscaling_config())
    policy = work.policy.get_policy()(**work.policy.policy_kwargs)
    assert policy(context([], target=3))[0] == 3
    assert (work.min_replicas, work.max_replicas, work.downscale_delay_s) == (0, 8, 0)
    assert work.policy.policy_kwargs["downscale_delay_s"] == 77

    requests = AutoscalingConfig(**config.autoscaling_of("ingress").autoscaling_config())
    assert requests.policy.is_default_policy_function()
    assert requests.target_ongoing_requests == 64


def test_what_replicas_have_no_room_for_counts_as_arriving() -> None:
    """One replica accepts what it can do, one request of 1 s per second. Two more come and wait."""
    policy, state = WorkPolicy(**AIM), {}
    for second in range(16):
        now = 1000.0 + second
        reports = [(at, taken_in(at, 1.0)) for at in (now - 15, now)]
        wanted, state = policy(context([reports], target=1, queued=2.0 * second, now=now, state=state))
    assert wanted >= 3, "one does all that waits in time, and not what arrives"


def test_a_replica_that_has_just_started_reports_no_flood() -> None:
    """It accepted its first request within half a second."""
    reports = [(999.5, NOTHING), (1000.0, taken_in(1, 1.0) | {"work_s": 1.0})]
    assert WorkPolicy(**AIM)(context([reports], target=1))[0] == 1


def test_a_tenfold_step_is_seen_within_seconds() -> None:
    """The look-back is short. One replica has four requests at once and does two per second."""
    policy, state, reports, targets = WorkPolicy(**AIM), {}, [], []
    accepted = waiting = 0.0
    for second in range(60):
        arrives = 4.0 if second >= 40 else 0.4
        taken = min(2.0, waiting + arrives)
        waiting += arrives - taken
        accepted += taken
        reports = [*reports[-3:], (float(second), taken_in(accepted, 1.0) | {"work_s": 2.0})]
        ctx = context([reports], target=1, queued=waiting, now=second, state=state, look_back_s=3.0)
        target, state = policy(ctx)
        targets.append(target)
    assert set(targets[:40]) == {1}
    assert max(targets[40:46]) >= 3


def replicas_over_time(
    costs: Callable[[int], Sequence[float]],
    seconds: int,
    before: float,
    room: int = 64,
    look_back_s: int = 15,
) -> list[int]:
    """The target number of replicas at each second. Every replica does a second of work per second and
    accepts `room` requests; the rest wait outside.

    costs: seconds of the requests of each second; before: seconds of each of a million earlier requests
    """
    policy, state, target, targets = WorkPolicy(**AIM), {}, 1, []
    held: list[float] = []
    waiting: list[float] = []
    totals, reports = taken_in(10**6, before), []
    for now in range(seconds):
        waiting += costs(now)
        done_s = float(target)
        while held and done_s:
            done_s, held[0] = max(0.0, done_s - held[0]), max(0.0, held[0] - done_s)
            held = held if held[0] else held[1:]
        while waiting and len(held) < room * target:
            held.append(waiting.pop(0))
            for name, value in taken_in(1, held[-1]).items():
                totals[name] += value
        reports = [*reports[-look_back_s:], (float(now), totals | {"work_s": sum(held)})]
        others = [[(float(now), NOTHING)]] * (target - 1)
        ctx = context([reports, *others], target, len(waiting), now, state, look_back_s)
        target, state = policy(ctx)
        targets.append(target)
    return targets


def replicas_over_time_under_admission(
    arriving: Callable[[int], int], seconds: int, start_s: int, max_wait_s: float = 60.0
) -> tuple[list[int], list[int]]:
    """The target and the running number of replicas at each second.

    arriving: requests per second, of one second each; no more are accepted than the running replicas do in
    max_wait_s; start_s: seconds until a replica runs. Starting replicas go first, as with Serve.
    """
    policy, state, target, held = WorkPolicy(**AIM), {}, 1, 0.0
    starting: list[int] = []  # when each runs
    totals, reports = NOTHING, []
    targets, running = [], []
    num_running = 1
    for now in range(seconds):
        num_running += sum(at <= now for at in starting)
        starting = [at for at in starting if at > now]
        starting = starting[: max(0, target - num_running)]
        starting += [now + start_s] * (target - num_running - len(starting))
        num_running = min(num_running, target)
        held = max(0.0, held - num_running)
        accepted = min(arriving(now), int(max_wait_s * num_running - held))
        held += accepted
        totals = {name: totals[name] + value for name, value in taken_in(accepted, 1.0).items()}
        reports = [*reports[-15:], (float(now), totals | {"work_s": held})]
        others = [[(float(now), NOTHING)]] * (num_running - 1)
        target, state = policy(context([reports, *others], target, 0.0, now, state))
        targets.append(target)
        running.append(num_running)
    return targets, running


@pytest.mark.parametrize("start_s", [30, 150, 400])
def test_replicas_that_start_slowly_are_waited_for_though_requests_are_refused(start_s: int) -> None:
    """Twenty times the load, so long that refused requests are forgotten before the first replica runs."""
    targets, running = replicas_over_time_under_admission(
        lambda now: 10 if now >= 200 else now % 2, 1800, start_s
    )
    assert max(targets[:200]) == 1
    peak = targets.index(max(targets))
    assert targets[:peak] == sorted(targets[:peak]), f"it flaps: {targets}"
    assert targets[peak:] == sorted(targets[peak:], reverse=True), f"it flaps: {targets}"
    assert running[-1] == targets[-1] == 15, "10 s of work a second, at 70%, keep 14.3 busy"


def test_replicas_that_cannot_start_are_not_asked_for_when_the_load_is_over() -> None:
    targets, running = replicas_over_time_under_admission(
        lambda now: 10 if 200 <= now < 400 else now % 2, 1800, start_s=10**6
    )
    assert max(targets) > 4
    assert running[-1] == targets[-1] == 1


def test_dearer_requests_are_seen_within_seconds() -> None:
    """A million requests of 0.2 s, then as many per second of 2.5 s: twelve times the work."""
    targets = replicas_over_time(lambda now: [2.5 if now >= 100 else 0.2] * 2, 160, before=0.2)
    assert set(targets[15:100]) == {1}
    assert targets[104] > 1
    assert 7 <= targets[120] <= max(targets) <= 9, "5 s of work a second, at 70%, keep 7.1 busy"


def test_a_queue_outside_is_worth_what_comes_now() -> None:
    """A replica has room for four. Most arrivals wait outside, and by the mean of all earlier requests they
    would be hardly any work."""
    targets = replicas_over_time(
        lambda now: [2.5 if now >= 100 else 0.2] * 2, 115, before=0.2, room=4, look_back_s=3
    )
    assert set(targets[15:100]) == {1}
    assert max(targets[100:115]) >= 6


@pytest.mark.parametrize(
    ("kinds", "rate", "busy"),
    [
        ({0.2: 20, 1.0: 70, 2.5: 10}, 10.0, 9.9),
        ({0.0: 95, 0.5: 5}, 200.0, 5.0),  # most are cached
        ({0.2: 20, 1.0: 70, 2.5: 10}, 0.3, 0.3),
    ],
)
def test_a_steady_mix_changes_little(kinds: dict[float, int], rate: float, busy: float) -> None:
    """Requests of several costs arrive at random for ten minutes."""
    rng = random.Random(2)

    def costs(_: int) -> list[float]:
        arrived = sum(rng.random() < rate / 1000 for _ in range(1000))
        return rng.choices(list(kinds), list(kinds.values()), k=arrived)

    targets = replicas_over_time(costs, 600, before=busy / rate)
    assert busy / 0.7 - 1 <= targets[-1] <= 1.5 * busy / 0.7 + 1
    changes = [after - before for before, after in itertools.pairwise(targets[300:]) if before != after]
    turns = sum((before > 0) != (after > 0) for before, after in itertools.pairwise(changes))
    assert turns <= 2, f"it flaps: {targets[300:]}"
