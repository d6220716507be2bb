"""Replicas by work: how many a stage needs to do what has come and what will, in seconds of its device.

Serve calls WorkPolicy in its controller, for every stage and several times a second, and applies the bounds
and `upscale_delay_s`. This module is sent there by value: it imports nothing of Midstep.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ray.serve.config import AutoscalingContext

logger = logging.getLogger("ray.serve")

# What replicas report (deployments.work).
WORK_S, ACCEPTED_S, ACCEPTED = "work_s", "accepted_s", "accepted"
# How many standard deviations of Poisson arrivals are more than chance.
_MORE_THAN_CHANCE = 3.0

History = list[tuple[float, float]]  # (time, value), one for every second


@dataclass(frozen=True, slots=True)
class Load:
    """A stage's load.

    replicas: that run
    request_s: device-seconds of a request, in the mean
    waiting: requests that no replica has taken in yet
    work_s: device-seconds of what is not done, those that wait included
    arriving: requests that come in a second, over the look-back
    """

    replicas: int
    request_s: float
    waiting: float
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
    arriving_s = load.arriving * load.request_s
    enough = arriving_s / aim.utilization
    work_s = load.work_s + arriving_s * aim.drain_s
    missing_s = work_s - load.replicas * aim.drain_s
    if missing_s <= 0:
        return math.ceil(max(enough, work_s / aim.drain_s))
    return math.ceil(max(enough, load.replicas + missing_s / (aim.drain_s - aim.cold_start_s)))


def load_of(ctx: AutoscalingContext) -> Load | None:
    """What the replicas have reported within the look-back; None before one has done so twice.

    A request that waits outside of the replicas counts as much as those that they have taken in, and is none
    of those that arrive.
    """
    reported = ctx.raw_metrics
    accepted_s, accepted = reported.get(ACCEPTED_S), reported.get(ACCEPTED)
    if not accepted_s or not accepted or not any(map(_seconds, accepted.values())):
        return None
    held_s, total_s, total = (
        sum(series[-1].value for series in of.values()) for of in (reported[WORK_S], accepted_s, accepted)
    )
    request_s = total_s / total if total else 0.0
    return Load(
        replicas=ctx.current_num_replicas,
        request_s=request_s,
        waiting=ctx.total_queued_requests,
        work_s=held_s + ctx.total_queued_requests * request_s,
        # A new replica has looked back less far, and what it took in at its start came over a longer time.
        arriving=sum(_growth(series) for series in accepted.values()) / ctx.config.look_back_period_s,
    )


def _growth(series: Any) -> float:
    return float(series[-1].value - series[0].value)


def _seconds(series: Any) -> float:
    return float(series[-1].timestamp - series[0].timestamp)


def steady_rate(rate: float, look_back_s: float, history: History) -> tuple[float, bool]:
    """The rate of arrivals to plan with: its mean over the history, unless the look-back departs from that by
    more than chance explains. And whether it does.

    A look-back of some seconds sees a change at once, and is too short to tell how much arrives on average.
    """
    mean = sum(past for _, past in history) / len(history) if history else rate
    arrived, expected = rate * look_back_s, mean * look_back_s
    departs = abs(arrived - expected) > _MORE_THAN_CHANCE * math.sqrt(max(1.0, expected))
    return (rate if departs else mean), departs


class WorkPolicy:
    """A stage's autoscaling policy, as Serve calls one; made from the fields of its Aim.

    More replicas as soon as they are needed, fewer only when they have not been for downscale_delay_s. Where
    nothing is known, as many as there are meant to be: a policy that raises would stop all autoscaling.
    """

    def __init__(self, **aim: float) -> None:
        self._aim = Aim(**aim)

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        try:
            load = load_of(ctx)
            if load is None:
                return ctx.target_num_replicas, ctx.policy_state
            return self._decide(load, ctx)
        except Exception:  # the boundary to the controller
            logger.exception("autoscaling of %s: replicas are left as they are", ctx.deployment_name)
            return ctx.target_num_replicas, ctx.policy_state

    def _decide(self, load: Load, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        now, state, aim = ctx.current_time, ctx.policy_state, self._aim
        look_back_s = ctx.config.look_back_period_s
        waiting = _with(state.get("waiting", []), now, load.waiting, now - look_back_s)
        # What replicas have no room for arrives as well: the queue outside of them grows by it.
        rate = load.arriving + max(0.0, waiting[-1][1] - waiting[0][1]) / look_back_s
        planned, departs = steady_rate(rate, look_back_s, state.get("rates", []))
        rates = _with(state.get("rates", []), now, rate, now if departs else now - aim.drain_s)
        needed = replicas_needed(replace(load, arriving=planned), aim)
        recent = _with(state.get("needed", []), now, needed, now - aim.downscale_delay_s, merge=max)
        seen_for_s = now - recent[0][0]
        most = int(max(replicas for _, replicas in recent))
        if seen_for_s < aim.downscale_delay_s:
            most = ctx.target_num_replicas
        target = max(needed, min(ctx.target_num_replicas, most))
        return target, {"waiting": waiting, "rates": rates, "needed": recent}


def _latest(_: float, new: float) -> float:
    return new


def _with(
    history: History,
    now: float,
    value: float,
    since: float,
    merge: Callable[[float, float], float] = _latest,
) -> History:
    """The history with this value, from `since` on and with one entry from before. merge: of one second."""
    if history and now - history[-1][0] < 1.0:
        history = [*history[:-1], (history[-1][0], merge(history[-1][1], value))]
    else:
        history = [*history, (now, value)]
    old = [entry for entry in history if entry[0] <= since]
    return old[-1:] + [entry for entry in history if entry[0] > since]
