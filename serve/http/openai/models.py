"""`GET /v1/models` and `/v1/models/{id}`: what is served, as OpenAI's clients ask for it."""

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.errors import ModelNotFoundError
from serve.http.front_desk import FrontDesk
from serve.http.openai.answers import Model, Models
from serve.http.operations import Answer, Operation, described
from serve.served_model import ServedModel

_TAG = "Models (OpenAI)"
_PAGE = Operation(tag=_TAG, summary="List the models", answers=[Answer(description="All.", type=Models)])
_GET = Operation(
    tag=_TAG,
    summary="Get a model",
    answers=[Answer(description="The model.", type=Model)],
    errors=[ModelNotFoundError],
)


class ModelsRoutes:
    """The handlers of the routes."""

    def __init__(self, desk: FrontDesk) -> None:
        self._desk = desk
        self._started_at = time.time()

    @property
    def routes(self) -> list[Route]:
        return [Route("/v1/models", self._page), Route("/v1/models/{id}", self._get)]

    @described(_PAGE)
    async def _page(self, _: Request) -> Response:
        page: Models = {
            "object": "list",
            "data": [self._described(one) for one in self._desk.models.values()],
        }
        return JSONResponse(page)

    @described(_GET)
    async def _get(self, request: Request) -> Response:
        return JSONResponse(self._described(self._desk.model(request.path_params["id"], "id")))

    def _described(self, model: ServedModel) -> Model:
        return {
            "id": model.id,
            "object": "model",
            "created": int(self._started_at),
            "owned_by": "midstep",
            "device": model.device,
            "aliases": list(model.aliases),
        }
