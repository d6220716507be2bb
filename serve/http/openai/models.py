"""`GET /v1/models` and `/v1/models/{id}`: what is served, as OpenAI's clients ask for it."""

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.http.front_desk import FrontDesk
from serve.http.openai import operations
from serve.http.openai.answers import Model, Models
from serve.http.operations import described
from serve.served_model import ServedModel


class ModelsRoutes:
    """The handlers of the routes."""

    def __init__(self, desk: FrontDesk) -> None:
        self._desk = desk
        self._started_at = time.time()

    @property
    def routes(self) -> list[Route]:
        return [Route("/v1/models", self._page), Route("/v1/models/{id}", self._get)]

    @described(operations.MODELS)
    async def _page(self, _: Request) -> Response:
        page: Models = {
            "object": "list",
            "data": [self._described(one) for one in self._desk.models.values()],
        }
        return JSONResponse(page)

    @described(operations.MODEL)
    async def _get(self, request: Request) -> Response:
        return JSONResponse(self._described(self._desk.model(request.path_params["id"], "id")))

    def _described(self, model: ServedModel) -> Model:
        return {
            "id": model.id,
            "object": "model",
            "created": int(self._started_at),
            "owned_by": "midstep",
            "device": model.device,
        }
