"""What work costs, as the stages' replicas have said."""

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Any

from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from deployments.engine.cost import CostModel, StageCost
from deployments.engine.model_source import ModelRef
from serve.calls.deadline import until
from serve.calls.failover import call_once, retried
from serve.errors import NotReadyError
from serve.ray_internals import routing_stats

logger = logging.getLogger("ray.serve")


class StageCosts:
    """Asks each stage once. model: the configured one"""

    def __init__(
        self,
        encoder: DeploymentHandle,
        denoiser: DeploymentHandle,
        decoder: DeploymentHandle,
        model: ModelRef,
    ) -> None:
        self._stages = {"encoder": encoder, "denoiser": denoiser, "decoder": decoder}
        self._model = model
        self._costs: dict[str, Any] = {}  # by stage, of the configured model
        # Of other models, by the U-Net's digest; tasks that ask for them.
        self._forwards: dict[str, tuple[StageCost, float]] = {}
        self._asked: dict[str, asyncio.Task[None]] = {}

    async def check_ready(self, timeout_s: float, asked_once: Collection[str] = ()) -> None:
        """Returns when every stage has answered. Raises NotReadyError.

        A call waits its turn among the requests. So once every stage has answered, a late answer means only
        that the stage is busy.
        asked_once: stages that are not called again after they have answered
        """
        done = self._costs.keys() & set(asked_once)
        try:
            await asyncio.wait_for(self._ask_costs(self._stages.keys() - done), timeout_s)
        except TimeoutError as error:
            if self.known() is None:
                raise NotReadyError(
                    "Not every stage has a replica that answers yet.", retry_after_s=1
                ) from error
        except RayError as error:
            raise NotReadyError("A stage has just lost its replica.", retry_after_s=1) from error

    def known(self, model: ModelRef | None = None) -> CostModel | None:
        """A model's costs, or the configured one's while they are unknown; None before every stage has
        reported its costs."""
        if self._costs.keys() != self._stages.keys():
            return None
        decode, encode_picture = self._costs["decoder"]
        of_model = self._forwards.get((model or self._model).unet, self._costs["denoiser"])
        forward, load_s = of_model
        if self.is_resident(model):
            load_s = 0.0
        elif said := self._said():
            load_s = min(one["load_s"] for one in said)  # of the last loads
        return CostModel(self._costs["encoder"], forward, decode, encode_picture, load_s)

    async def of(self, model: ModelRef | None, deadline: float) -> CostModel:
        """A model's costs, from the stages' replicas. Each is asked once.

        Raises DeadlineExceededError and GenerationFailedError.
        """
        while (known := self.known(model)) is None:
            await until(
                deadline,
                retried(
                    "that asks what work costs",
                    lambda: self._ask_costs(self._stages.keys() - self._costs.keys()),
                ),
            )
        return known

    def is_resident(self, model: ModelRef | None) -> bool:
        """Whether a denoiser holds a model, as far as is known here. They start with the configured one."""
        digest = (model or self._model).unet
        if not (said := self._said()):
            return digest == self._model.unet
        return any(digest in one["models"] for one in said)

    def _said(self) -> list[Mapping[str, Any]]:
        """What denoisers have said about their models."""
        return [said for said in routing_stats(self._stages["denoiser"]) if "models" in said]

    def learn_soon(self, model: ModelRef) -> None:
        """Asks a denoiser what a model's forwards cost, at its first request. Until then the configured one's
        count for it."""
        if model.unet not in self._asked:
            self._asked[model.unet] = asyncio.create_task(self._learn(model))

    async def _learn(self, model: ModelRef) -> None:
        try:
            self._forwards[model.unet] = await call_once(self._stages["denoiser"].cost.remote, model)
        except RayError as error:
            logger.warning("what %s costs is not known yet: %s", model.source.path, type(error).__name__)
            del self._asked[model.unet]

    async def _ask_costs(self, stages: Collection[str]) -> None:
        async def ask(stage: str) -> None:
            self._costs[stage] = await call_once(self._stages[stage].cost.remote, self._model)

        await asyncio.gather(*map(ask, stages))
