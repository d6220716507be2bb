"""What the stages' work costs on this device: known from a file, or measured when a replica starts."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from deployments.engine.cost import CostModel, Curve, StageCost, counts_to_measure, measure, measure_shapes
from deployments.engine.engine_config import EngineConfig
from deployments.engine.messages import LatentShape
from deployments.engine.step_scheduler import Group

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class CostMeasurement:
    """shapes: the latent shapes that are measured; known: a cost model that makes measuring needless."""

    shapes: tuple[LatentShape, ...]
    known: CostModel | None = None

    def forward_cost(self, warm_up: Callable[[LatentShape, int], None], config: EngineConfig) -> StageCost:
        """Also warms up every forward that is to be fast from the first request on."""
        counts = sorted(
            {*(config.row_counts or counts_to_measure(config.max_rows)), config.deterministic_rows}
        )
        if self.known:
            for shape in self.shapes:
                for count in reversed(counts):
                    warm_up(shape, count)
            cost = self.known.forward
        else:
            cost = measure_shapes(warm_up, self.shapes, counts)
        cost = replace(cost, padded_to=config.row_counts or cost.padded_to)
        caps = ", ".join(
            f"{config.row_cap(Group(shape, False), cost)} at {shape[0]}x{shape[1]}" for shape in self.shapes
        )
        logger.info("cost of U-Net forwards; most rows that share one: %s\n%s", caps, cost.table("rows"))
        return cost

    def decode_cost(self, warm_up: Callable[[LatentShape, int], None], max_batch_size: int) -> StageCost:
        if self.known:
            return self.known.decode
        cost = measure_shapes(warm_up, self.shapes, counts_to_measure(max_batch_size))
        logger.info("cost of VAE decoding\n%s", cost.table("images"))
        return cost

    def encode_cost(self, warm_up: Callable[[int], None], max_batch_size: int) -> Curve:
        if self.known:
            return self.known.encode
        curve = measure(warm_up, counts_to_measure(max_batch_size))
        logger.info("cost of text encoding\n%s", curve.table("texts"))
        return curve
