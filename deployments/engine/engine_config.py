"""How an engine batches: the row cap, and the row counts that forwards are padded to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deployments.engine.adapters import rank_buckets
from deployments.engine.cost import StageCost, counts_to_measure, padded
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
    row_counts: the counts that forwards of static shapes are padded to, rising, so that few must be captured;
        empty for no padding, None for what suits the device
    checkpoint_interval_s: seconds between the checkpoints of a running request; None for no checkpoints
    max_rank: the most rows of a bank that the adapters of a forward take; 0 for no adapters
    other_shapes: shapes that are static besides the usual one
    """

    max_rows: int
    rows_per_forward: int | None
    deterministic_rows: int
    latent_shape: LatentShape
    row_counts: tuple[int, ...] | None = ()
    checkpoint_interval_s: float | None = None
    max_rank: int = 0
    other_shapes: tuple[LatentShape, ...] = ()

    @property
    def static_shapes(self) -> tuple[LatentShape, ...]:
        """The latent shapes whose forwards have one of a few row counts; none without padding."""
        return (self.latent_shape, *self.other_shapes) if self.row_counts else ()

    def has_static_inputs(self, group: Group) -> bool:
        """Whether a forward's requests are padded as well, to as many as its rows.

        Deterministic ones are in every shape: on CUDA, sums over a request's values may be split up
        differently with another number of requests.
        """
        return bool(self.row_counts) and (group.deterministic or group.latent_shape in self.static_shapes)

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
        rows = self.rows_per_forward or cost.curve(usual).knee(self._caps(usual))
        allowed = int(rows * min(1.0, math.prod(usual) / math.prod(group.latent_shape)))
        return max((count for count in self._caps(group.latent_shape) if count <= allowed), default=2)

    def _caps(self, shape: LatentShape) -> Sequence[int]:
        """The row counts that a full forward of this shape may have, rising."""
        if shape in self.static_shapes:
            return [count for count in self.row_counts or () if count >= 2]
        return range(2, self.max_rows + 1, 2)

    def work_s(self, group: Group, cost: StageCost, rows: int, rank: int = 0) -> float:
        """Device-seconds of so many rows of model calls, in forwards as full as possible.

        rank: the bank's rows that their adapters take, as if the forwards had no others
        """
        full = self.row_cap(group, cost)
        return rows * self.seconds(group, cost, full, rank) / full

    def denoise_s(
        self,
        group: Group,
        cost: StageCost,
        calls_by_rows: Mapping[int, int],
        num_images: int,
        other_rows: int = 0,
        rank: int = 0,
    ) -> float:
        """Seconds of one pass of a request's images, without encoding and decoding.

        calls_by_rows: the number of each image's model calls, by their rows
        rank: the bank's rows that its adapters take
        The request shares forwards with other_rows rows of other requests. It goes first where not all fit.
        """
        seconds = 0.0
        for num_rows, num_calls in calls_by_rows.items():
            own_rows = num_rows * num_images
            shared_rows = min(own_rows + other_rows, max(self.row_cap(group, cost), num_rows))
            turns = math.ceil(own_rows / shared_rows)
            seconds += turns * num_calls * self.seconds(group, cost, shared_rows, rank)
        return seconds

    def seconds(self, group: Group, cost: StageCost, rows: int, rank: int = 0) -> float:
        """Seconds of a forward with so many rows and so many of a bank's."""
        return cost.seconds(group.latent_shape, self.forward_rows(group, rows), self.forward_rank(rank))

    def forward_rows(self, group: Group, rows: int) -> int:
        """The rows of a forward with `rows` rows of work, padding included."""
        if group.deterministic:
            return self.deterministic_rows
        is_static = group.latent_shape in self.static_shapes
        return padded(rows, self.row_counts or ()) if is_static else rows

    def forward_rank(self, rank: int) -> int:
        """The rank of a forward whose adapters take so many rows of the bank."""
        return padded(rank, rank_buckets(self.max_rank)) if rank else 0
