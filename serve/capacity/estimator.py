"""Estimates of a request's latency and work, from the cost model."""

import math
from dataclasses import dataclass

from deployments.engine.cost import CostModel
from deployments.engine.engine_config import EngineConfig
from deployments.engine.step_scheduler import Group
from serve.generation import GenerationRequest


@dataclass(frozen=True, slots=True)
class Estimator:
    """Estimates for denoisers that batch according to `engine`."""

    engine: EngineConfig

    def latency_s(self, request: GenerationRequest, cost: CostModel, other_rows: float = 0.0) -> float:
        """Seconds until the last image is done, on a denoiser with other_rows rows of other requests."""
        group, engine = _group(request), self._engine(cost)
        return cost.latency_s(
            group.latent_shape,
            request.calls_by_rows(),
            num_images=request.num_images,
            row_cap=engine.row_cap(group, cost.forward),
            other_rows=math.ceil(other_rows),
            fixed_rows=engine.deterministic_rows if request.deterministic else None,
        )

    def work_s(self, request: GenerationRequest, cost: CostModel) -> float:
        """Device-seconds of denoising all images of the request."""
        rows = request.num_images * request.rows_left()
        return self._engine(cost).work_s(_group(request), cost.forward, rows)

    def _engine(self, cost: CostModel) -> EngineConfig:
        return self.engine.padded_to(cost.forward.padded_to)


def _group(request: GenerationRequest) -> Group:
    return Group(request.latent_shape, request.deterministic)
