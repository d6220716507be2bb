"""The step scheduler: which requests share the next forward.

Rows share a forward when their latents have the same shape; deterministic requests keep to forwards of
their own, which always have the same number of rows. Requests of one group go by deadline, so that a
short request is not held up by long ones, as many at once as the cost of a forward and the length of the
queue make worth it, and make way for a much shorter one that such a forward would make late; groups go by
slack, the time a group could still be left waiting before one of its requests is late. Nothing is moved to
leave a request out of a forward: that is all that preemption is here.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Protocol, TypeVar

from deployments.engine.messages import DenoiseRequest, LatentShape

# A request that names no deadline may take this many times what it would take alone. In a simulation of 4 to
# 50 steps at 80% and 90% load, 10 gave means 1% to 4% below those of 3 or 4: it is nearer to shortest first.
PATIENCE = 10.0
# Within this many times a request is prompt. Others that have MUCH_LONGER times as long to go as it needs
# make way for that. In the same simulation it concerned 1% of the forwards and left the mean as it was.
PROMPTNESS = 3.0
MUCH_LONGER = 4.0
# A row that is there counts so much in what a forward costs all. Simulated with the modelled costs of an H200
# and those of the embedded model at 50% to 90% load, weights from 8 to 24 had means within a seventh of each
# other; with lower ones forwards are too small when there is much to do (benchmarks/step_scheduling.py).
WAITING_WEIGHT = 12.0
# A group that has been passed over this many times goes next, whatever the slack of the others.
MAX_TURNS_WAITED = 8


@dataclass(frozen=True, slots=True)
class Group:
    """What must be equal for requests to share a forward.

    isolated: the id of a request that shares none, None for all others
    """

    latent_shape: LatentShape
    deterministic: bool
    isolated: str | None = None


def group_of(request: DenoiseRequest) -> Group:
    return Group(
        request.latent_shape, request.deterministic, request.request_id if request.isolated else None
    )


class Schedulable(Protocol):
    """What the step scheduler reads of a request that is being denoised."""

    @property
    def request(self) -> DenoiseRequest: ...
    @property
    def group(self) -> Group: ...
    @property
    def calls_left(self) -> int:
        """Model calls that are still to come."""
        ...

    @property
    def num_calls(self) -> int:
        """All of them."""
        ...

    @property
    def arrival(self) -> float:
        """In seconds since the epoch."""
        ...

    @property
    def unloaded_s(self) -> float:
        """Seconds that all of it takes alone."""
        ...


Item = TypeVar("Item", bound=Schedulable)


def deadline(item: Schedulable) -> float:
    """The longer a request takes alone, the longer it can wait. Its own deadline counts where it is earlier:
    one that is far away is a time-out and no wish to be served last."""
    patient = item.arrival + PATIENCE * item.unloaded_s * 2.0**-item.request.priority
    return min(item.request.deadline or math.inf, patient)


def remaining_s(item: Schedulable) -> float:
    """Seconds that a request would still take alone."""
    return item.unloaded_s * item.calls_left / item.num_calls


def slack_s(items: Iterable[Schedulable], now: float) -> float:
    """Seconds until the most urgent of these requests can no longer be on time."""
    return min(deadline(item) - now - remaining_s(item) for item in items)


def pick_group(slacks: Mapping[Group, float], turns_waited: Mapping[Group, int]) -> Group:
    """Whose turn it is; of g groups none is passed over more than MAX_TURNS_WAITED + g - 1 times."""
    overdue = [group for group in slacks if turns_waited.get(group, 0) >= MAX_TURNS_WAITED]
    if overdue:
        return max(overdue, key=lambda group: turns_waited[group])
    return min(slacks, key=lambda group: slacks[group])


def pick_members(items: Iterable[Item], max_rows: int) -> list[Item]:
    """The earliest deadline in any case, and then as many requests as fit into a forward of max_rows."""
    members: list[Item] = []
    rows = 0
    for item in sorted(items, key=deadline):
        if not members or rows + item.request.num_rows <= max_rows:
            members.append(item)
            rows += item.request.num_rows
    return members


def worth_it(members: Sequence[Item], present_rows: int, seconds: Callable[[int], float]) -> list[Item]:
    """The first of the members, as many as had best share a forward.

    present_rows: of all requests, members or not; seconds: of a forward of so many rows

    A full forward makes the most of the device, a small one is sooner done. Were all n rows of a queue alike
    and came no others, forwards of k rows, each k until its end, would have a mean latency in proportion to
    (n + k) * seconds(k) / k. Others do come, and to make the most of the device is for their sake as well:
    so n has a weight.
    """
    weighted = WAITING_WEIGHT * present_rows
    prices = [
        (weighted + rows) * seconds(rows) / rows
        for rows in accumulate(item.request.num_rows for item in members)
    ]
    return list(members[: prices.index(min(prices)) + 1])


def make_way(batch: Sequence[Item], seconds: Callable[[int], float], now: float) -> list[Item]:
    """The requests of a forward without those that step aside for the shortest that can still be prompt.

    seconds: of a forward of so many rows. Nobody steps aside where the whole batch is prompt enough, where a
    smaller one would not be either, where it would make them late, or for a request that is not much shorter.
    """
    prompt = [item for item in batch if remaining_s(item) <= _time_to_be_prompt_s(item, now)]
    if not prompt:
        return list(batch)
    shortest = min(prompt, key=remaining_s)

    def needs_s(members: Sequence[Item]) -> float:
        return shortest.calls_left * seconds(sum(item.request.num_rows for item in members))

    staying = sorted(batch, key=remaining_s)
    leaving: list[Item] = []
    while needs_s(staying) > _time_to_be_prompt_s(shortest, now) and staying[-1] is not shortest:
        leaving.append(staying.pop())
    turn_s = needs_s(staying)
    if turn_s <= _time_to_be_prompt_s(shortest, now) and all(
        remaining_s(item) >= MUCH_LONGER * turn_s and slack_s([item], now) >= turn_s for item in leaving
    ):
        return staying
    return list(batch)


def _time_to_be_prompt_s(item: Schedulable, now: float) -> float:
    return item.arrival + PROMPTNESS * item.unloaded_s - now


class StepScheduler:
    """Whose turn it is, step by step; it counts the turns that groups wait.

    row_cap: most rows of a group's forward; seconds: of a group's forward of so many rows
    """

    def __init__(self, row_cap: Callable[[Group], int], seconds: Callable[[Group, int], float]) -> None:
        self._row_cap = row_cap
        self._seconds = seconds
        self._turns_waited: dict[Group, int] = {}

    def admit(self, items: Iterable[Item], now: float) -> list[Item]:
        """Chooses the items, one at least, that share the next forward."""
        present: dict[Group, list[Item]] = {}
        present_rows = 0
        for item in items:
            present.setdefault(item.group, []).append(item)
            present_rows += item.request.num_rows
        slacks = {group: slack_s(items, now) for group, items in present.items()}
        chosen = pick_group(slacks, self._turns_waited)
        self._turns_waited = {
            group: 0 if group == chosen else self._turns_waited.get(group, 0) + 1 for group in present
        }
        members = pick_members(present[chosen], self._row_cap(chosen))
        seconds = partial(self._seconds, chosen)
        return make_way(worth_it(members, present_rows, seconds), seconds, now)
