"""The cost of a stage's work on this device: read from a file, or measured when a replica starts."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from deployments.engine.adapters import rank_buckets
from deployments.engine.cost import (
    CostModel,
    Curve,
    StageCost,
    counts_to_measure,
    measure,
    measure_factors,
    measure_shapes,
)
from deployments.engine.engine_config import EngineConfig
from deployments.engine.messages import LatentShape
from deployments.engine.model_source import ModelLoadError
from deployments.engine.step_scheduler import Group
from deployments.kept_costs import KeptCosts
from deployments.progress import MEASURING

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class MeasuredOn:
    """Where a known cost model comes from: the name of its device, and the dtype as torch spells it."""

    device: str
    dtype: str


@dataclass(frozen=True, slots=True)
class CostMeasurement:
    """How a replica learns what its work costs.

    shapes: the latent shapes to measure; known: a cost model that makes measuring unnecessary
    kept: measurements of earlier replicas; None to measure in any case
    measured_on: where the known cost model comes from; None for one that fits any device
    """

    shapes: tuple[LatentShape, ...]
    known: CostModel | None = None
    kept: KeptCosts | None = None
    measured_on: MeasuredOn | None = None

    def check_device(self, here: MeasuredOn) -> None:
        """Warns if the known costs are from another device than the one here.

        Raises ModelLoadError if they are for another precision, as with dtype `auto` on another kind of GPU.
        """
        measured = self.measured_on
        if measured is None or measured == here:
            return
        if measured.dtype != here.dtype:
            raise ModelLoadError(
                f"model.cost_model was measured in {measured.dtype} on {measured.device}, and {here.device} "
                f"computes in {here.dtype}: measure with `midstep profile` here, or set model.dtype"
            )
        logger.warning(
            "model.cost_model was measured on %s, and this is %s: deadlines, refusals and scaling go by it. "
            "Measure with `midstep profile` here",
            measured.device,
            here.device,
        )

    def forward_cost(
        self, warm_up: Callable[[LatentShape, int, int], None], config: EngineConfig
    ) -> StageCost:
        """The cost of forwards. Also warms up every forward that must be fast from the first request on.

        warm_up: runs a forward of a shape, with so many rows and adapters of that rank
        """

        def plain(shape: LatentShape, rows: int) -> None:
            warm_up(shape, rows, 0)

        def measured(counts: Sequence[int]) -> StageCost:
            cost, shape = measure_shapes(plain, self.shapes, counts), self.shapes[0]
            if not config.max_rank:
                return cost
            rows = config.row_cap(Group(shape, False), cost)
            factors = measure_factors(partial(warm_up, shape, rows), rank_buckets(config.max_rank))
            return replace(cost, adapted=factors)

        counts = sorted(
            {*(config.row_counts or counts_to_measure(config.max_rows)), config.deterministic_rows}
        )
        known = self.known.forward if self.known else None
        cost, is_measured = self._stage_cost("denoiser", measured, counts, known)
        if not is_measured:
            for shape in self.shapes:
                for count in reversed(counts):
                    plain(shape, count)
        cost = replace(cost, padded_to=config.row_counts or cost.padded_to)
        caps = ", ".join(
            f"{config.row_cap(Group(shape, False), cost)} at {shape[0]}x{shape[1]}" for shape in self.shapes
        )
        logger.info("cost of U-Net forwards; most rows in one forward: %s\n%s", caps, cost.table("rows"))
        return cost

    def decode_cost(self, warm_up: Callable[[LatentShape, int], None], most: int) -> StageCost:
        """most: images in a call"""
        known = self.known.decode if self.known else None
        return self._vae_cost("decoder", warm_up, counts_to_measure(most), known)

    def encode_picture_cost(self, warm_up: Callable[[LatentShape, int], None], most: int) -> StageCost:
        """most: pictures in a call. Few requests have a picture, so few counts are measured."""
        known = self.known.picture if self.known else None
        return self._vae_cost("picture-encoder", warm_up, sorted({1, most}), known)

    def _vae_cost(
        self,
        stage: str,
        warm_up: Callable[[LatentShape, int], None],
        counts: Sequence[int],
        known: StageCost | None,
    ) -> StageCost:
        def measured(counts: Sequence[int]) -> StageCost:
            return measure_shapes(warm_up, self.shapes, counts)

        cost, is_measured = self._stage_cost(stage, measured, counts, known)
        if is_measured:
            logger.info("cost of the VAE as %s\n%s", stage, cost.table("images"))
        else:
            for shape in self.shapes:
                for count in _to_warm_up(counts):
                    warm_up(shape, count)
        return cost

    def encode_cost(self, warm_up: Callable[[int], None], max_batch_size: int) -> Curve:
        counts = counts_to_measure(max_batch_size)

        def measured() -> Curve:
            logger.info(MEASURING)
            return measure(warm_up, counts)

        if self.known:
            curve, is_measured = self.known.encode, False
        elif self.kept is None:
            curve, is_measured = measured(), True
        else:
            curve, is_measured = self.kept.get_or_measure("encoder", Curve, counts, measured)
        if is_measured:
            logger.info("cost of text encoding\n%s", curve.table("texts"))
        else:
            for count in _to_warm_up(counts):
                warm_up(count)
        return curve

    def _stage_cost(
        self,
        stage: str,
        measured: Callable[[Sequence[int]], StageCost],
        counts: Sequence[int],
        known: StageCost | None,
    ) -> tuple[StageCost, bool]:
        """The cost, and whether it was measured just now."""
        if known is not None:
            return known, False

        def measured_now() -> StageCost:
            logger.info(MEASURING)
            return measured(counts)

        if self.kept is None:
            return measured_now(), True
        return self.kept.get_or_measure(stage, StageCost, counts, measured_now)


def _to_warm_up(counts: Sequence[int]) -> list[int]:
    """The counts of the largest call, which takes its memory first, and of the smallest, the usual one."""
    return sorted({1, counts[-1]}, reverse=True)
