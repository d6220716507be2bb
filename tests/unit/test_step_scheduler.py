"""The choice of the next forward: pure functions of deadlines, costs and turns waited."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from deployments.engine.adapters import AdapterRef, AdapterUse
from deployments.engine.messages import DenoiseRequest, PromptEmbeds, TokenCount
from deployments.engine.step_scheduler import (
    MAX_TURNS_WAITED,
    MUCH_LONGER,
    PATIENCE,
    PROMPTNESS,
    Group,
    StepScheduler,
    deadline,
    group_of,
    make_way,
    pick_group,
    pick_members,
    remaining_s,
    slack_s,
    unloaded_s,
    worth_it,
)
from tests.generation_requests import denoise_request

SMALL, LARGE = Group((16, 16), False), Group((32, 32), False)
CALL_S = 0.02  # one request's two rows


@dataclass
class Item:
    request: DenoiseRequest
    arrival: float = 0.0
    call: int = 0
    group: Group = field(default=SMALL)

    @property
    def unloaded_s(self) -> float:
        return unloaded_s(self.request, forward_s)


def item(
    name: str,
    calls: int = 10,
    *,
    num_rows: int = 2,
    arrival: float = 0.0,
    adapters: Mapping[str, int] | None = None,
    **fields: float,
) -> Item:
    """adapters: ranks by name"""
    uses = tuple(
        AdapterUse(AdapterRef(one, "", digest=one, unet_rank=rank, text_rank=0), 1.0)
        for one, rank in (adapters or {}).items()
    )
    embeds = PromptEmbeds(None, None, None, None, TokenCount(0, 0), TokenCount(0, 0))  # type: ignore[arg-type]
    guidance_scale = 5.0 if num_rows == 2 else 1.0
    request = denoise_request(
        name, embeds, num_calls=calls, guidance_scale=guidance_scale, adapters=uses, **fields
    )
    return Item(request, arrival)


def forward_s(rows: int, rank: int = 0) -> float:
    return CALL_S * rows / 2


def names(items: list[Item]) -> list[str]:
    return [one.request.request_id for one in items]


def test_what_remains_is_in_proportion_to_the_model_calls_left() -> None:
    half = item("half")
    half.call = 5
    assert remaining_s(half) == pytest.approx(half.unloaded_s / 2)


def test_rows_that_are_left_count_and_not_calls() -> None:
    half = item("half", guidance_end=0.5)
    half.call = 5
    assert half.unloaded_s == pytest.approx(7.5 * CALL_S)
    assert remaining_s(half) == pytest.approx(2.5 * CALL_S)


def test_slack_is_of_the_most_urgent() -> None:
    relaxed, urgent = item("relaxed", deadline=1.9), item("urgent", 30, deadline=1.5)
    assert slack_s([relaxed, urgent], now=0.5) == pytest.approx(1.5 - 0.5 - 30 * CALL_S)


def test_a_deadline_counts_where_it_is_earlier_than_patience() -> None:
    patient = 3.0 + PATIENCE * 10 * CALL_S
    assert deadline(item("none", arrival=3.0)) == pytest.approx(patient)
    assert deadline(item("far", arrival=3.0, deadline=99.0)) == pytest.approx(patient)
    assert deadline(item("near", arrival=3.0, deadline=3.5)) == 3.5


def test_priority_halves_the_wait() -> None:
    assert deadline(item("high", priority=1)) == pytest.approx(deadline(item("plain")) / 2)
    assert deadline(item("low", priority=-1)) == pytest.approx(deadline(item("plain")) * 2)


def test_the_least_slack_goes_first() -> None:
    assert pick_group({SMALL: 1.0, LARGE: -1.0}, {}) == LARGE


def test_who_has_waited_long_enough_goes_first_whatever_the_slack() -> None:
    assert pick_group({SMALL: -1e9, LARGE: 1e9}, {LARGE: MAX_TURNS_WAITED}) == LARGE
    three = {SMALL: -1e9, LARGE: 1e9, Group((8, 8), False): 0.0}
    assert pick_group(three, {LARGE: MAX_TURNS_WAITED}) == SMALL
    assert pick_group(three, {LARGE: 2 * MAX_TURNS_WAITED}) == LARGE


def test_among_the_overdue_the_longest_waiting() -> None:
    turns = {SMALL: MAX_TURNS_WAITED, LARGE: MAX_TURNS_WAITED + 1}
    assert pick_group({SMALL: 0.0, LARGE: 0.0}, turns) == LARGE


def test_members_are_taken_by_deadline_as_long_as_there_is_room() -> None:
    items = [
        item("c", deadline=0.3),
        item("a", deadline=0.1),
        item("b", deadline=0.2),
        item("one row", num_rows=1),
    ]
    assert names(pick_members(items, 5)) == ["a", "b", "one row"]


def test_members_have_as_many_different_adapters_as_the_bank_has_rows() -> None:
    items = [
        item("a", deadline=0.1, adapters={"one": 32}),
        item("b", deadline=0.2, adapters={"two": 90}),
        item("c", deadline=0.3, adapters={"three": 8}),
        item("d", deadline=0.4, adapters={"one": 32, "three": 8}),
        item("e", deadline=0.5),
    ]
    assert names(pick_members(items, 16, max_rank=128)) == ["a", "b", "e"]
    assert names(pick_members(items, 16, max_rank=64)) == ["a", "c", "d", "e"]


def with_and_without(rank_factor: float) -> list[str]:
    """The names in a forward of six plain requests, the more urgent ones, and two with adapters.

    rank_factor: how many times as long a forward takes with adapters
    """
    scheduler = StepScheduler(
        lambda group: 16,
        lambda group, rows, rank: (0.08 + 0.003 * rows) * (rank_factor if rank else 1.0),
        max_rank=128,
    )
    plain = [item(f"plain {index}", arrival=0.0) for index in range(6)]
    adapted = [item(f"adapted {index}", arrival=0.1, adapters={"one": 16}) for index in range(2)]
    return names(scheduler.admit([*plain, *adapted], now=0.2))


def test_rows_with_and_without_adapters_share_a_forward_where_that_is_cheaper() -> None:
    assert len(with_and_without(1.05)) == 8
    assert with_and_without(3.0) == [f"plain {index}" for index in range(6)]


def test_deterministic_requests_share_forwards_with_those_that_have_the_same_adapters() -> None:
    groups = [
        group_of(item("", adapters=adapters, deterministic=True).request)
        for adapters in ({}, {"one": 16}, {"two": 8}, {"one": 16, "two": 8}, {"two": 8, "one": 16})
    ]
    assert len(set(groups)) == 4
    assert groups[3] == groups[4]
    assert group_of(item("", adapters={"one": 16}).request) == group_of(item("").request)


def test_a_device_that_takes_more_rows_for_nothing_gets_all() -> None:
    members = [item(str(index)) for index in range(8)]
    assert worth_it(members, 16, lambda rows, rank: CALL_S)[1] == members


def test_where_sharing_gains_nothing_one_goes_after_the_other() -> None:
    members = [item(str(index)) for index in range(8)]
    assert names(worth_it(members, 16, forward_s)[1]) == ["0"]


def test_the_more_wait_the_more_share_a_forward() -> None:
    members = [item(str(index)) for index in range(16)]
    sizes = [
        len(worth_it(members, present_rows, lambda rows, rank: 0.008 + 0.014 * rows)[1])
        for present_rows in (2, 8, 32, 128)
    ]
    assert sizes == sorted(set(sizes))


def test_of_forwards_that_are_padded_the_full_ones_are_worth_it() -> None:
    members = [item(str(index)) for index in range(4)]
    assert len(worth_it(members, 8, lambda rows, rank: forward_s(4 * -(-rows // 4)))[1]) == 2


def test_the_much_longer_make_way_as_far_as_a_short_one_needs() -> None:
    """A forward of two requests takes twice as long as the short one alone, and one of three three times."""
    batch = [item("short", 4), *(item(f"long {index}", 100) for index in range(5))]
    staying = make_way(batch, forward_s, now=0.0)
    assert names(staying) == ["short", "long 0", "long 1"]
    assert 4 * forward_s(6) <= PROMPTNESS * 4 * CALL_S < 4 * forward_s(8)


def test_nobody_makes_way_for_one_that_is_not_much_shorter() -> None:
    calls = int(MUCH_LONGER * PROMPTNESS * 4) - 1
    batch = [item("short", 4), *(item(f"long {index}", calls) for index in range(5))]
    assert make_way(batch, forward_s, now=0.0) == batch


def test_nobody_makes_way_who_would_be_late_for_it() -> None:
    batch = [item("short", 4), *(item(f"long {index}", 100, deadline=2.05) for index in range(5))]
    assert make_way(batch, forward_s, now=0.0) == batch


def test_nobody_makes_way_where_all_are_prompt_anyway() -> None:
    batch = [item("short", 4), item("long", 100)]
    assert make_way(batch, forward_s, now=0.0) == batch


def test_nobody_makes_way_for_one_that_is_late_already() -> None:
    batch = [item("short", 4), *(item(f"long {index}", 100) for index in range(5))]
    assert make_way(batch, forward_s, now=PROMPTNESS * 4 * CALL_S) == batch
