"""`/livez`, `/readyz` and `/health`."""

import asyncio
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from deployments.engine.cost import CostModel
from serve.calls.pipeline import Pipeline
from serve.calls.readiness import Readiness
from serve.errors import NotReadyError
from serve.http.operations import PLAIN_TEXT, Answer, Operation, described

_READY_TIMEOUT_S = 2.0
_LEARNING_PAUSE_S = 1.0
_TAG = "Operation"
_OK = Answer(description="It is.", media_types=(PLAIN_TEXT,), example="ok")
_LIVEZ = Operation(tag=_TAG, summary="Whether this replica lives", answers=(_OK,))
_READYZ = Operation(
    tag=_TAG,
    summary="Whether requests can be served",
    description="503 while a stage has no replica. `/health` and `/readyz` are the same.",
    answers=(_OK,),
)


class HealthRoutes:
    """Whether this replica lives, and whether it can take requests."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/livez", self._livez),
            Route("/readyz", self._readyz),
            Route("/health", self._readyz),  # where load balancers and SGLang's benchmark look
        ]

    @described(_LIVEZ)
    async def _livez(self, _: Request) -> Response:
        return PlainTextResponse("ok")

    @described(_READYZ)
    async def _readyz(self, _: Request) -> Response:
        await self._readiness.check(_READY_TIMEOUT_S)
        return PlainTextResponse("ok")


async def learned_cost(pipeline: Pipeline, readiness: Readiness) -> CostModel:
    """The cost model, once every stage has reported its costs, even if nobody asks /readyz."""
    while (cost := pipeline.costs.known()) is None:
        await asyncio.sleep(_LEARNING_PAUSE_S)
        with suppress(NotReadyError):
            await readiness.check(_READY_TIMEOUT_S)
    return cost
