"""How an engine batches: the row cap, and the row counts that forwards are padded to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deployments.engine.adapters import rank_buckets
from deployments.engine.cost import StageCost, counts_to_measure
from deployments.engine.messages import LatentShape
from deployments.engine.step_scheduler import Group

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine batches.

    max_rows: most U-Net rows in one forward
    rows_per_forward: the row cap; None for the knee of the measured cost, past which rows only cost time
    deterministic_rows: the one row count of deterministic forwards; another value gives other bytes
    latent_shape: the usual shape, for which the row cap is meant; larger ones get fewer rows
    row_counts: the counts that forwards are padded to, rising, so that few shapes must be captured; empty for
        no padding, None for what suits the device
    checkpoint_interval_s: seconds between the checkpoints of a running request; None for no checkpoints
    max_rank: the most rows of a bank that the adapters of a forward take; 0 for no adapters
    """

    max_rows: int
    rows_per_forward: int | None
    deterministic_rows: int
    latent_shape: LatentShape
    row_counts: tuple[int, ...] | None = ()
    checkpoint_interval_s: float | None = None
    max_rank: int = 0

    def for_device(self, device: torch.device) -> EngineConfig:
        """Fills in row_counts: a few on CUDA, where each captured count costs memory and start-up time; none
        elsewhere, where nothing is captured and padding would only cost time."""
        if self.row_counts is not None:
            return self
        steps = sorted({*counts_to_measure(self.max_rows), *(3 * 2**power for power in range(1, 6))})
        return self.padded_to(steps if device.type == "cuda" else ())

    def padded_to(self, counts: Iterable[int]) -> EngineConfig:
        """Fills in row_counts with the counts that max_rows allows."""
        if self.row_counts is not None:
            return self
        return replace(self, row_counts=tuple(count for count in counts if count <= self.max_rows))

    def row_cap(self, group: Group, cost: StageCost) -> int:
        """The most rows in a forward of this group."""
        if group.deterministic:
            return self.deterministic_rows
        usual = self.latent_shape
        counts = self.row_counts or range(2, self.max_rows + 1, 2)
        rows = self.rows_per_forward or cost.curve(usual).knee([count for count in counts if count >= 2])
        allowed = int(rows * min(1.0, math.prod(usual) / math.prod(group.latent_shape)))
        return max((count for count in counts if 2 <= count <= allowed), default=2)

    def work_s(self, group: Group, cost: StageCost, rows: int, rank: int = 0) -> float:
        """Device-seconds of so many rows of model calls, in forwards as full as possible.

        rank: the bank's rows that their adapters take, as if the forwards had no others
        """
        full = self.row_cap(group, cost)
        return rows * self.seconds(group, cost, full, rank) / full

    def seconds(self, group: Group, cost: StageCost, rows: int, rank: int = 0) -> float:
        """Seconds of a forward with so many rows and so many of a bank's."""
        return cost.seconds(group.latent_shape, self.forward_rows(group, rows), self.forward_rank(rank))

    def forward_rows(self, group: Group, rows: int) -> int:
        """The rows of a forward with `rows` rows of work, padding included."""
        if group.deterministic:
            return self.deterministic_rows
        return next((count for count in self.row_counts or () if count >= rows), rows)

    def forward_rank(self, rank: int) -> int:
        """The rank of a forward whose adapters take so many rows of the bank."""
        return next((one for one in rank_buckets(self.max_rank) if one >= rank), rank) if rank else 0
