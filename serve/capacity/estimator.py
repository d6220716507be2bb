"""Estimates of a request's latency and work, from the cost model."""

import math
from dataclasses import dataclass

from deployments.engine.adapters import bank_rows
from deployments.engine.cost import CostModel
from deployments.engine.engine_config import EngineConfig
from deployments.engine.messages import ImageParameters
from deployments.engine.step_scheduler import Group
from serve.generation import GenerationRequest


@dataclass(frozen=True, slots=True)
class Estimator:
    """Estimates for denoisers that batch according to `engine`. Forwards are as slow as a request's own
    adapters make them: others may have none."""

    engine: EngineConfig

    def latency_s(self, request: GenerationRequest, cost: CostModel, other_rows: float = 0.0) -> float:
        """Seconds until the last image is done, on a denoiser with other_rows rows of other requests."""
        engine, images = self._engine(cost), request.num_images
        first, last = request.passes[0], request.passes[-1]
        seconds = cost.encode.seconds(request.rows_per_image)
        if request.start is not None:  # encoded at the same time as the text
            seconds = max(seconds, cost.picture.seconds(first.latent_shape, 1))
        seconds += cost.load_s
        for one in request.passes:
            seconds += engine.denoise_s(
                _group(one),
                cost.forward,
                one.calls_by_rows(),
                images,
                other_rows=math.ceil(other_rows),
                rank=bank_rows(one.adapters),
            )
        if request.hires is not None and request.hires.upscaler == "lanczos":
            seconds += cost.decode.seconds(first.latent_shape, images)
            seconds += cost.picture.seconds(last.latent_shape, images)
        return seconds + cost.decode.seconds(last.latent_shape, images)

    def work_s(self, request: GenerationRequest, cost: CostModel) -> float:
        """Device-seconds of denoising all images of the request."""
        engine = self._engine(cost)
        return sum(
            engine.work_s(
                _group(one), cost.forward, request.num_images * one.rows_left(), bank_rows(one.adapters)
            )
            for one in request.passes
        )

    def _engine(self, cost: CostModel) -> EngineConfig:
        return self.engine.padded_to(cost.forward.padded_to)


def _group(one: ImageParameters) -> Group:
    return Group(one.latent_shape, one.deterministic)
