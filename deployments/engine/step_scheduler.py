"""The step scheduler: which requests share the next forward.

Rows share a forward when their latents have the same shape; deterministic requests keep to forwards of
their own, which always have the same number of rows. Requests of one group go by deadline, so that a
short request is not held up by long ones; groups go by slack, the time a group could still be left
waiting before one of its requests is late. Nothing is moved to leave a request out of a forward: that
is all that preemption is here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from deployments.engine.cost import CostModel
from deployments.engine.messages import DenoiseRequest, LatentShape

# A request that names no deadline may take this many times what it would take alone.
PATIENCE = 4.0
# A group that has been passed over this many times goes next, whatever the slack of the others.
MAX_TURNS_WAITED = 8


@dataclass(frozen=True, slots=True)
class Group:
    """What must be equal for requests to share a forward."""

    latent_shape: LatentShape
    deterministic: bool


class Schedulable(Protocol):
    """What the step scheduler reads of a request that is being denoised."""

    @property
    def request(self) -> DenoiseRequest: ...
    @property
    def group(self) -> Group: ...
    @property
    def rows_left(self) -> int:
        """Model calls that are still to come."""
        ...

    @property
    def deadline(self) -> float:
        """In seconds since the epoch."""
        ...


Item = TypeVar("Item", bound=Schedulable)


def patience_deadline(arrival: float, unloaded_s: float, priority: int) -> float:
    """The deadline of a request that names none: the longer it takes alone, the longer it can wait."""
    return arrival + PATIENCE * unloaded_s * 2.0**-priority


def remaining_s(item: Schedulable, cost_model: CostModel) -> float:
    """Seconds that a request would still take alone."""
    return item.rows_left * cost_model.seconds(item.group.latent_shape, item.request.num_rows)


def slack_s(items: Iterable[Schedulable], cost_model: CostModel, now: float) -> float:
    """Seconds until the most urgent of these requests can no longer be on time."""
    return min(item.deadline - now - remaining_s(item, cost_model) for item in items)


def pick_group(slacks: Mapping[Group, float], turns_waited: Mapping[Group, int]) -> Group:
    """Whose turn it is; of g groups none is passed over more than MAX_TURNS_WAITED + g - 1 times."""
    overdue = [group for group in slacks if turns_waited.get(group, 0) >= MAX_TURNS_WAITED]
    if overdue:
        return max(overdue, key=lambda group: turns_waited[group])
    return min(slacks, key=lambda group: slacks[group])


def pick_members(items: Iterable[Item], max_rows: int) -> list[Item]:
    """As many requests as fit into a forward of max_rows, the earliest deadline first."""
    members: list[Item] = []
    rows = 0
    for item in sorted(items, key=lambda item: item.deadline):
        if rows + item.request.num_rows <= max_rows:
            members.append(item)
            rows += item.request.num_rows
    return members
