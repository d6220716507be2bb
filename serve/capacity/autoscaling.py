"""Autoscaling by work: the number of replicas that a stage needs for its present and coming work.

Work is in device-seconds. Serve calls WorkPolicy in its controller, for every stage and several times a
second, and applies the bounds and `upscale_delay_s`. This module is sent there by value, so it never imports
Midstep.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ray.serve.config import AutoscalingContext

logger = logging.getLogger("ray.serve")

# The names of replicas' reports (deployments.work).
WORK_S, ACCEPTED_S, ACCEPTED_S2, ACCEPTED = "work_s", "accepted_s", "accepted_s2", "accepted"
# Deviations from the mean above this many standard deviations of Poisson arrivals are more than chance.
_MORE_THAN_CHANCE = 3.0

Value = TypeVar("Value")
History = list[tuple[float, Value]]  # (time, value), one for every second


class Arrivals(NamedTuple):
    """Requests that came within the look-back. work_s: device-seconds; work_s2: the sum of their squares,
    which is the variance of work_s if requests come at random."""

    requests: float
    work_s: float
    work_s2: float

    def times(self, factor: float) -> "Arrivals":
        return Arrivals(*(factor * value for value in self))


@dataclass(frozen=True, slots=True)
class Reports:
    """Reports of a stage's replicas. waiting: requests outside of the replicas

    held_s: device-seconds of work that the replicas have accepted and not done
    arrived: requests accepted within the look-back; ever: requests accepted since the replicas' starts
    """

    waiting: float
    held_s: float
    arrived: Arrivals
    ever: Arrivals


@dataclass(frozen=True, slots=True)
class Load:
    """A stage's load.

    replicas: running replicas
    work_s: device-seconds of unfinished work, including requests that wait outside of the replicas
    arriving: device-seconds that arrive per second
    """

    replicas: int
    work_s: float
    arriving: float


@dataclass(frozen=True, slots=True)
class Aim:
    """The aims of autoscaling.

    utilization: the largest share of its time that a device should be busy
    drain_s: seconds within which the queue should be done
    cold_start_s: seconds that a new replica needs before it works
    downscale_delay_s: seconds for which surplus replicas are kept: the target stays at the largest need
        within them
    """

    utilization: float
    drain_s: float
    cold_start_s: float
    downscale_delay_s: float


def replicas_needed(load: Load, aim: Aim) -> int:
    """Enough replicas for the arriving work and to drain the queue; new ones help after a cold start."""
    enough = load.arriving / aim.utilization
    work_s = load.work_s + load.arriving * aim.drain_s
    missing_s = work_s - load.replicas * aim.drain_s
    if missing_s <= 0:
        return math.ceil(max(enough, work_s / aim.drain_s))
    return math.ceil(max(enough, load.replicas + missing_s / (aim.drain_s - aim.cold_start_s)))


def reports_of(ctx: AutoscalingContext) -> Reports | None:
    """The stage's reports; None before a replica has reported twice."""
    reported = ctx.raw_metrics
    accepted = reported.get(ACCEPTED)
    if not accepted or not any(map(_seconds, accepted.values())):
        return None
    taken_in = [reported[name].values() for name in (ACCEPTED, ACCEPTED_S, ACCEPTED_S2)]
    return Reports(
        waiting=ctx.total_queued_requests,
        held_s=sum(series[-1].value for series in reported[WORK_S].values()),
        # A new replica's look-back is shorter, and its first requests came over a longer time.
        arrived=Arrivals(*(sum(map(_growth, of)) for of in taken_in)),
        ever=Arrivals(*(sum(series[-1].value for series in of) for of in taken_in)),
    )


def _growth(series: Any) -> float:
    return float(series[-1].value - series[0].value)


def _seconds(series: Any) -> float:
    return float(series[-1].timestamp - series[0].timestamp)


def steady(arrived: Arrivals, history: History[Arrivals]) -> tuple[Arrivals, bool]:
    """The arrivals to plan with, and whether they depart from the past. They are the mean of the history,
    unless the work in the look-back differs from it by more than chance.

    A look-back of some seconds shows a change at once, in the number of requests and in their cost. It is too
    short to tell the average arrivals.
    """
    if not history:
        return arrived, False
    pasts = [past for _, past in history]
    mean = Arrivals(*map(sum, zip(*pasts, strict=True))).times(1 / len(pasts))
    # At least the variance of one request: a few do not tell whether they are more than usual, or dearer.
    variance = max(mean.work_s2, arrived.work_s2 / max(1.0, arrived.requests))
    departs = abs(arrived.work_s - mean.work_s) > _MORE_THAN_CHANCE * math.sqrt(variance)
    return (arrived if departs else mean), departs


class WorkPolicy:
    """A stage's autoscaling policy, as Serve calls it. Its arguments are the fields of Aim.

    It adds replicas as soon as they are needed, and removes them only after downscale_delay_s without need.
    While new replicas start and the running ones are too few, the current target counts as needed. If nothing
    is known, it keeps the target, since a policy that raises would stop all autoscaling.
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
            logger.exception("autoscaling of %s: keeping the current number of replicas", ctx.deployment_name)
            return ctx.target_num_replicas, ctx.policy_state

    def _decide(self, reports: Reports, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        now, state, aim = ctx.current_time, ctx.policy_state, self._aim
        look_back_s = ctx.config.look_back_period_s
        waiting = _with(state.get("waiting", []), now, reports.waiting, now - look_back_s)
        # A typical request: the mean of recent ones or, if none came, of earlier ones.
        request = _mean(reports.arrived) or state.get("request") or _mean(reports.ever) or Arrivals(1, 0, 0)
        # Requests without room in a replica arrive as well: the queue outside of the replicas grows by them.
        grown = max(0.0, waiting[-1][1] - waiting[0][1])
        arrived = request.times(reports.arrived.requests + grown)
        planned, departs = steady(arrived, state.get("arrivals", []))
        arrivals = _with(state.get("arrivals", []), now, arrived, now if departs else now - aim.drain_s)
        request = _mean(planned) or request
        # Requests that wait outside of the replicas weigh as much as arriving ones.
        work_s = reports.held_s + reports.waiting * request.work_s
        load = Load(ctx.current_num_replicas, work_s, planned.work_s / look_back_s)
        needed = replicas_needed(load, aim)
        if needed > ctx.current_num_replicas:
            # Other replicas are still starting. Requests refused by admission meanwhile are not seen here, so
            # arrivals seem lower than when these replicas were requested.
            needed = max(needed, ctx.target_num_replicas)
        recent = _with(state.get("needed", []), now, needed, now - aim.downscale_delay_s, merge=max)
        seen_for_s = now - recent[0][0]
        most = int(max(replicas for _, replicas in recent))
        if seen_for_s < aim.downscale_delay_s:
            most = ctx.target_num_replicas
        target = max(needed, min(ctx.target_num_replicas, most))
        return target, {"waiting": waiting, "arrivals": arrivals, "request": request, "needed": recent}


def _mean(arrivals: Arrivals) -> Arrivals | None:
    """The mean request; None if there are no requests."""
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
    """The history from `since` on, one older entry, and this value. merge: joins values of one second"""
    if history and now - history[-1][0] < 1.0:
        history = [*history[:-1], (history[-1][0], merge(history[-1][1], value))]
    else:
        history = [*history, (now, value)]
    old = [entry for entry in history if entry[0] <= since]
    return old[-1:] + [entry for entry in history if entry[0] > since]
