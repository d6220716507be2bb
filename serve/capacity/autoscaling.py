"""Replicas by work: how many a stage needs to do what has come and what will, in seconds of its device.

Serve calls WorkPolicy in its controller, for every stage and several times a second, and applies the bounds
and `upscale_delay_s`. This module is sent there by value: it imports nothing of Midstep.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ray.serve.config import AutoscalingContext

logger = logging.getLogger("ray.serve")

# What replicas report (deployments.work).
WORK_S, ACCEPTED_S, ACCEPTED_S2, ACCEPTED = "work_s", "accepted_s", "accepted_s2", "accepted"
# How many standard deviations of Poisson arrivals are more than chance.
_MORE_THAN_CHANCE = 3.0

Value = TypeVar("Value")
History = list[tuple[float, Value]]  # (time, value), one for every second


class Arrivals(NamedTuple):
    """Requests that came within a look-back. work_s: device-seconds; work_s2: the sum of their squares, which
    is the variance of work_s when requests come at random."""

    requests: float
    work_s: float
    work_s2: float

    def times(self, factor: float) -> "Arrivals":
        return Arrivals(*(factor * value for value in self))


@dataclass(frozen=True, slots=True)
class Reports:
    """What a stage's replicas report. waiting: requests that none of them has taken in yet

    held_s: device-seconds of what they have taken in and not done
    arrived: what they have taken in within the look-back; ever: since their starts
    """

    waiting: float
    held_s: float
    arrived: Arrivals
    ever: Arrivals


@dataclass(frozen=True, slots=True)
class Load:
    """A stage's load.

    replicas: that run
    work_s: device-seconds of what is not done, what waits outside of the replicas included
    arriving: device-seconds that come in a second
    """

    replicas: int
    work_s: float
    arriving: float


@dataclass(frozen=True, slots=True)
class Aim:
    """What replicas are there for.

    utilization: the share of its time that a device should be busy, at most
    drain_s: seconds within which all that waits is to be done
    cold_start_s: seconds that a new replica needs before it works
    downscale_delay_s: seconds for which more replicas than are needed are kept: as many as were needed at any
        time within them
    """

    utilization: float
    drain_s: float
    cold_start_s: float
    downscale_delay_s: float


def replicas_needed(load: Load, aim: Aim) -> int:
    """Enough for what arrives, and to drain the queue in time. A new replica helps after its cold start."""
    enough = load.arriving / aim.utilization
    work_s = load.work_s + load.arriving * aim.drain_s
    missing_s = work_s - load.replicas * aim.drain_s
    if missing_s <= 0:
        return math.ceil(max(enough, work_s / aim.drain_s))
    return math.ceil(max(enough, load.replicas + missing_s / (aim.drain_s - aim.cold_start_s)))


def reports_of(ctx: AutoscalingContext) -> Reports | None:
    """None before a replica has reported twice."""
    reported = ctx.raw_metrics
    accepted = reported.get(ACCEPTED)
    if not accepted or not any(map(_seconds, accepted.values())):
        return None
    taken_in = [reported[name].values() for name in (ACCEPTED, ACCEPTED_S, ACCEPTED_S2)]
    return Reports(
        waiting=ctx.total_queued_requests,
        held_s=sum(series[-1].value for series in reported[WORK_S].values()),
        # A new replica has looked back less far, and what it took in at its start came over a longer time.
        arrived=Arrivals(*(sum(map(_growth, of)) for of in taken_in)),
        ever=Arrivals(*(sum(series[-1].value for series in of) for of in taken_in)),
    )


def _growth(series: Any) -> float:
    return float(series[-1].value - series[0].value)


def _seconds(series: Any) -> float:
    return float(series[-1].timestamp - series[0].timestamp)


def steady(arrived: Arrivals, history: History[Arrivals]) -> tuple[Arrivals, bool]:
    """The arrivals to plan with: their mean over the history, unless the work of the look-back departs from
    that by more than chance explains. And whether it does.

    A look-back of some seconds sees a change at once, in how many requests come and in what they cost, and is
    too short to tell how much arrives on average.
    """
    if not history:
        return arrived, False
    pasts = [past for _, past in history]
    mean = Arrivals(*map(sum, zip(*pasts, strict=True))).times(1 / len(pasts))
    # That of one request at least: of a few it cannot be told whether they are more than usual, or dearer.
    variance = max(mean.work_s2, arrived.work_s2 / max(1.0, arrived.requests))
    departs = abs(arrived.work_s - mean.work_s) > _MORE_THAN_CHANCE * math.sqrt(variance)
    return (arrived if departs else mean), departs


class WorkPolicy:
    """A stage's autoscaling policy, as Serve calls one; made from the fields of its Aim.

    More replicas as soon as they are needed, fewer only when they have not been for downscale_delay_s. While
    some start and those that run are too few, all that were asked for count as needed. Where nothing is
    known, as many as there are meant to be: a policy that raises would stop all autoscaling.
    """

    def __init__(self, **aim: float) -> None:
        self._aim = Aim(**aim)

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        try:
            reports = reports_of(ctx)
            if reports is None:
                return ctx.target_num_replicas, ctx.policy_state
            return self._decide(reports, ctx)
        except Exception:  # the boundary to the controller
            logger.exception("autoscaling of %s: replicas are left as they are", ctx.deployment_name)
            return ctx.target_num_replicas, ctx.policy_state

    def _decide(self, reports: Reports, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        now, state, aim = ctx.current_time, ctx.policy_state, self._aim
        look_back_s = ctx.config.look_back_period_s
        waiting = _with(state.get("waiting", []), now, reports.waiting, now - look_back_s)
        # What a request is like: as those of late, and as those before when none came.
        request = _mean(reports.arrived) or state.get("request") or _mean(reports.ever) or Arrivals(1, 0, 0)
        # What replicas have no room for arrives as well: the queue outside of them grows by it.
        grown = max(0.0, waiting[-1][1] - waiting[0][1])
        arrived = request.times(reports.arrived.requests + grown)
        planned, departs = steady(arrived, state.get("arrivals", []))
        arrivals = _with(state.get("arrivals", []), now, arrived, now if departs else now - aim.drain_s)
        request = _mean(planned) or request
        # What waits outside of the replicas is as much work as what comes.
        work_s = reports.held_s + reports.waiting * request.work_s
        load = Load(ctx.current_num_replicas, work_s, planned.work_s / look_back_s)
        needed = replicas_needed(load, aim)
        if needed > ctx.current_num_replicas:
            # Others still start. What admission refuses for want of them is not seen here, so that less seems
            # to come than when they were asked for.
            needed = max(needed, ctx.target_num_replicas)
        recent = _with(state.get("needed", []), now, needed, now - aim.downscale_delay_s, merge=max)
        seen_for_s = now - recent[0][0]
        most = int(max(replicas for _, replicas in recent))
        if seen_for_s < aim.downscale_delay_s:
            most = ctx.target_num_replicas
        target = max(needed, min(ctx.target_num_replicas, most))
        return target, {"waiting": waiting, "arrivals": arrivals, "request": request, "needed": recent}


def _mean(arrivals: Arrivals) -> Arrivals | None:
    """One of these requests; None if there are none."""
    return arrivals.times(1 / arrivals.requests) if arrivals.requests else None


def _latest(_: Value, new: Value) -> Value:
    return new


def _with(
    history: History[Value],
    now: float,
    value: Value,
    since: float,
    merge: Callable[[Value, Value], Value] = _latest,
) -> History[Value]:
    """The history with this value, from `since` on and with one entry from before. merge: of one second."""
    if history and now - history[-1][0] < 1.0:
        history = [*history[:-1], (history[-1][0], merge(history[-1][1], value))]
    else:
        history = [*history, (now, value)]
    old = [entry for entry in history if entry[0] <= since]
    return old[-1:] + [entry for entry in history if entry[0] > since]
