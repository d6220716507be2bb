"""Whose turn it is: pure functions of deadlines, costs and turns waited."""

from dataclasses import dataclass, field

from deployments.engine.cost import CostModel
from deployments.engine.messages import DenoiseRequest, PromptEmbeds
from deployments.engine.step_scheduler import (
    MAX_TURNS_WAITED,
    Group,
    patience_deadline,
    pick_group,
    pick_members,
    slack_s,
)

COST = CostModel({(16, 16): ((1, 0.1), (2, 0.2), (4, 0.4))})
SMALL, LARGE = Group((16, 16), False), Group((32, 32), False)


@dataclass
class Item:
    request: DenoiseRequest
    deadline: float
    rows_left: int = 10
    group: Group = field(default=SMALL)


def item(name: str, deadline: float, num_rows: int = 2, **fields: int) -> Item:
    # Rows are counted from the embeddings; what is in them does not matter here.
    negative = object() if num_rows == 2 else None
    embeds = PromptEmbeds(None, negative, None, None, 0, 0, 77)  # type: ignore[arg-type]
    return Item(DenoiseRequest(name, embeds, 128, 128, "Euler", 10, 5.0, 0), deadline, **fields)


def test_slack_is_of_the_most_urgent() -> None:
    relaxed, urgent = item("relaxed", deadline=100.0), item("urgent", deadline=12.0, rows_left=30)
    assert slack_s([relaxed, urgent], COST, now=10.0) == 12.0 - 10.0 - 30 * 0.2


def test_the_least_slack_goes_first() -> None:
    assert pick_group({SMALL: 1.0, LARGE: -1.0}, {}) == LARGE


def test_who_has_waited_long_enough_goes_first_whatever_the_slack() -> None:
    assert pick_group({SMALL: -1e9, LARGE: 1e9}, {LARGE: MAX_TURNS_WAITED}) == LARGE


def test_among_the_overdue_the_longest_waiting() -> None:
    turns = {SMALL: MAX_TURNS_WAITED, LARGE: MAX_TURNS_WAITED + 1}
    assert pick_group({SMALL: 0.0, LARGE: 0.0}, turns) == LARGE


def test_members_are_taken_by_deadline_as_long_as_there_is_room() -> None:
    items = [item("c", 3.0), item("a", 1.0), item("b", 2.0), item("one row", 4.0, num_rows=1)]
    assert [member.request.request_id for member in pick_members(items, 5)] == ["a", "b", "one row"]


def test_priority_halves_the_wait() -> None:
    assert patience_deadline(100.0, 2.0, 1) - 100.0 == (patience_deadline(100.0, 2.0, 0) - 100.0) / 2
