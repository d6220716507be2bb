"""Estimates of a request's latency and work, from the cost model."""

import math
from dataclasses import dataclass

from deployments.engine.cost import CostModel
from deployments.engine.engine_config import EngineConfig
from deployments.engine.messages import ImageParameters
from deployments.engine.step_scheduler import Group
from serve.generation import GenerationRequest


@dataclass(frozen=True, slots=True)
class Estimator:
    """Estimates for denoisers that batch according to `engine`."""

    engine: EngineConfig

    def latency_s(self, request: GenerationRequest, cost: CostModel, other_rows: float = 0.0) -> float:
        """Seconds until the last image is done, on a denoiser with other_rows rows of other requests."""
        engine = self._engine(cost)
        seconds = 0.0
        for one in request.passes:
            group = _group(one)
            seconds += cost.latency_s(
                group.latent_shape,
                one.calls_by_rows(),
                num_images=request.num_images,
                row_cap=engine.row_cap(group, cost.forward),
                other_rows=math.ceil(other_rows),
                fixed_rows=engine.deterministic_rows if request.deterministic else None,
                starts_from_picture=one.strength is not None,
            )
        return seconds

    def work_s(self, request: GenerationRequest, cost: CostModel) -> float:
        """Device-seconds of denoising all images of the request."""
        engine = self._engine(cost)
        return sum(
            engine.work_s(_group(one), cost.forward, request.num_images * one.rows_left())
            for one in request.passes
        )

    def _engine(self, cost: CostModel) -> EngineConfig:
        return self.engine.padded_to(cost.forward.padded_to)


def _group(one: ImageParameters) -> Group:
    return Group(one.latent_shape, one.deterministic)
