"""The step scheduler: which requests share the next forward.

Rows share a forward when they are of one model and their latents have the same shape. Deterministic requests
only share forwards with each other, which always have the same number of rows. Within a group, requests go by
deadline, so that a short request is not held up by long ones. The cost of a forward and the length of the
queue decide how many go at once. They make way for a much shorter request that a full forward would make
late. Groups go by slack: the time that a group can still wait before one of its requests is late. Leaving a
request out of a forward moves no data, and there is no other preemption.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from deployments.engine.adapters import bank_rows
from deployments.engine.messages import DenoiseRequest, LatentShape

# A request without a deadline may take this many times its time alone. In a simulation of 4 to 50 steps at
# 80% and 90% load, 10 gave means 1% to 4% below those of 3 or 4, because it is nearer to shortest first.
PATIENCE = 10.0
# A request is prompt within this many times its time alone. Requests that have MUCH_LONGER times as long to
# go make way for that. In the same simulation this concerned 1% of the forwards and left the mean unchanged.
PROMPTNESS = 3.0
MUCH_LONGER = 4.0
# The weight of a present row in the price of a forward. In simulations with the modelled costs of an H200 and
# those of the embedded model at 50% to 90% load, weights from 8 to 24 had means within a seventh of each
# other. With lower weights, forwards are too small under high load (benchmarks/step_scheduling.py).
WAITING_WEIGHT = 12.0
# Adapters cost all rows of a forward. Rows with and without them share one where its price is below that of
# one without the others by this factor. In simulations of modelled H200s at 80% load with 15% adapted rows, 1
# had means 3% higher for SDXL, whose forwards cost nearly in proportion to rows, and 2% lower for SD 1.5.
MIXING_GAIN = 1.1
# A group that has been passed over this many times for each other group goes next, whatever the slack of the
# others. With many models there are many groups, and a bound of 8 turns for all of them together made mean
# latency at 60% load a seventh longer: groups then take turns instead of going by slack.
MAX_TURNS_WAITED = 8


@dataclass(frozen=True, slots=True)
class Group:
    """Requests with equal groups can share a forward.

    isolated: the id of a request that shares no forward, None for all others
    tokens: of a deterministic request's texts, whose bits depend on their number; 0 for others
    model: the digest of the U-Net
    adapters: the digests of a deterministic request's, whose bits may depend on where they lie in the bank.
        Others may share a forward whatever adapters they have
    """

    latent_shape: LatentShape
    deterministic: bool
    isolated: str | None = None
    tokens: int = 0
    model: str = ""
    adapters: tuple[str, ...] = ()


def group_of(request: DenoiseRequest) -> Group:
    return Group(
        request.latent_shape,
        request.deterministic,
        request.request_id if request.isolated else None,
        request.embeds.common_length if request.deterministic else 0,
        request.model,
        tuple(sorted(use.adapter.digest for use in request.adapters)) if request.deterministic else (),
    )


class Schedulable(Protocol):
    """What the step scheduler reads of a request that is being denoised."""

    @property
    def request(self) -> DenoiseRequest: ...
    @property
    def group(self) -> Group: ...
    @property
    def call(self) -> int:
        """The model call that is made next."""
        ...

    @property
    def arrival(self) -> float:
        """Time in seconds since the epoch."""
        ...

    @property
    def unloaded_s(self) -> float:
        """Seconds that the whole request takes alone."""
        ...


Item = TypeVar("Item", bound=Schedulable)


def deadline(item: Schedulable) -> float:
    """When a request should be done. The longer it takes alone, the longer it can wait. Its own deadline
    counts if it is earlier: one that is far away is a time-out and not a wish to be served last."""
    patient = item.arrival + PATIENCE * item.unloaded_s * 2.0**-item.request.priority
    return min(item.request.deadline or math.inf, patient)


def unloaded_s(request: DenoiseRequest, seconds: Callable[[int], float]) -> float:
    """Seconds that a whole request takes alone. seconds: of a forward by its rows"""
    return sum(calls * seconds(rows) for rows, calls in request.calls_by_rows().items() if calls)


def remaining_s(item: Schedulable) -> float:
    """Seconds that the rest of a request takes alone."""
    return item.unloaded_s * item.request.rows_left(item.call) / item.request.rows_left()


def num_rows(items: Iterable[Schedulable]) -> int:
    """Rows of the items' next model calls."""
    return sum(item.request.rows_at(item.call) for item in items)


def slack_s(items: Iterable[Schedulable], now: float) -> float:
    """Seconds until the most urgent of these requests can no longer be on time."""
    return min(deadline(item) - now - remaining_s(item) for item in items)


def pick_group(slacks: Mapping[Group, float], turns_waited: Mapping[Group, int]) -> Group:
    """The group to go next; of g groups none is passed over more than (MAX_TURNS_WAITED + 1) * (g - 1)
    times."""
    bound = MAX_TURNS_WAITED * (len(slacks) - 1)
    overdue = [group for group in slacks if turns_waited.get(group, 0) >= bound > 0]
    if overdue:
        return max(overdue, key=lambda group: turns_waited[group])
    return min(slacks, key=lambda group: slacks[group])


def rank_of(items: Iterable[Schedulable]) -> int:
    """The rows of a bank that the items' adapters take together."""
    return bank_rows(use for item in items for use in item.request.adapters)


def pick_members(items: Iterable[Item], max_rows: int, max_rank: int = 0) -> list[Item]:
    """The request with the earliest deadline, and then as many others as fit into a forward of max_rows.

    max_rank: the most rows of a bank that their adapters may take together
    """
    members: list[Item] = []
    rows = 0
    for item in sorted(items, key=deadline):
        if members:
            # Asked only of those with adapters, as most have none and there may be hundreds.
            if rows + num_rows([item]) > max_rows:
                continue
            if item.request.adapters and rank_of([*members, item]) > max_rank:
                continue
        members.append(item)
        rows += num_rows([item])
    return members


def worth_it(
    members: Sequence[Item], present_rows: int, seconds: Callable[[int, int], float]
) -> tuple[float, list[Item]]:
    """The first members, as many as should share a forward, and its price.

    present_rows: rows of all requests, members or not
    seconds: of a forward by its rows and its adapters' rank

    A full forward makes the most of the device, but a small one is done sooner. Suppose that all n rows of a
    queue are alike, that no others come, and that forwards of k rows run each to their end. Then the mean
    latency is in proportion to (n + k) * seconds(k) / k. Others do come, and using the device well is for
    their sake too, so n has a weight.
    """
    weighted = WAITING_WEIGHT * present_rows
    prices, rows, rank = [], 0, 0
    for count, item in enumerate(members, 1):
        rows += num_rows([item])
        if item.request.adapters:
            rank = rank_of(members[:count])
        prices.append((weighted + rows) * seconds(rows, rank) / rows)
    return min(prices), list(members[: prices.index(min(prices)) + 1])


def make_way(batch: Sequence[Item], seconds: Callable[[int, int], float], now: float) -> list[Item]:
    """The requests of a forward without those that step aside for the shortest that can still be prompt.

    seconds: of a forward by its rows and its adapters' rank
    Nobody steps aside if the whole batch is prompt enough, if a smaller batch would not be either, if it
    would make them late, or for a request that is not much shorter.
    """
    prompt = [item for item in batch if remaining_s(item) <= _time_to_be_prompt_s(item, now)]
    if not prompt:
        return list(batch)
    shortest = min(prompt, key=remaining_s)

    def needs_s(members: Sequence[Item]) -> float:
        return (shortest.request.num_calls - shortest.call) * seconds(num_rows(members), rank_of(members))

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
    """Picks the group and the requests of every step; it counts the turns that groups wait.

    row_cap: most rows of a group's forward; max_rank: the most rows of a bank that its adapters take
    seconds: of a group's forward by its rows and its adapters' rank
    """

    def __init__(
        self,
        row_cap: Callable[[Group], int],
        seconds: Callable[[Group, int, int], float],
        max_rank: int = 0,
    ) -> None:
        self._row_cap = row_cap
        self._seconds = seconds
        self._max_rank = max_rank
        self._turns_waited: dict[Group, int] = {}

    def admit(self, items: Iterable[Item], now: float) -> list[Item]:
        """Chooses the items that share the next forward, at least one."""
        present: dict[Group, list[Item]] = {}
        for item in items:
            present.setdefault(item.group, []).append(item)
        present_rows = sum(map(num_rows, present.values()))
        slacks = {group: slack_s(items, now) for group, items in present.items()}
        chosen = pick_group(slacks, self._turns_waited)
        self._turns_waited = {
            group: 0 if group == chosen else self._turns_waited.get(group, 0) + 1 for group in present
        }

        seconds = partial(self._seconds, chosen)

        def best_of(items: Sequence[Item]) -> tuple[float, list[Item]]:
            members = pick_members(items, self._row_cap(chosen), self._max_rank)
            return worth_it(members, present_rows, seconds)

        price, batch = best_of(present[chosen])
        if rank_of(batch) > 0 and (alike := _like_the_first(batch, present[chosen])) is not None:
            other_price, other = best_of(alike)
            batch = other if other_price < MIXING_GAIN * price else batch
        return make_way(batch, seconds, now)


def _like_the_first(batch: Sequence[Item], items: Sequence[Item]) -> list[Item] | None:
    """The items that have adapters, or those without, as the most urgent; None if all of the batch do."""
    kind = bool(batch[0].request.adapters)
    if all(bool(item.request.adapters) == kind for item in batch):
        return None
    return [item for item in items if bool(item.request.adapters) == kind]
