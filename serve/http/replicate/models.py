"""`GET /v1/models/{owner}/{name}` and below: a model and its versions, for Replicate's clients."""

import time
from datetime import UTC, datetime
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.http.front_desk import FrontDesk
from serve.http.operations import described
from serve.http.replicate import operations
from serve.http.replicate.answers import ModelVersion, ModelVersions, ReplicateModel
from serve.http.replicate.schema import PredictionInput
from serve.served_model import ServedModel

_OUTPUT_SCHEMA = {"type": "array", "items": {"type": "string", "format": "uri"}}


class ReplicateModelsRoutes:
    """The handlers of the routes. At Replicate a model has an owner and versions: here any owner, and one
    version that is called as the model is."""

    def __init__(self, desk: FrontDesk) -> None:
        self._desk = desk
        self._started_at = time.time()

    @property
    def routes(self) -> list[Route]:
        path = "/v1/models/{owner}/{name}"
        return [
            Route(path, self._model),
            Route(f"{path}/versions", self._versions),
            Route(f"{path}/versions/{{version}}", self._one_version),
        ]

    @described(operations.MODEL)
    async def _model(self, request: Request) -> Response:
        model, owner = self._named(request, "name"), request.path_params["owner"]
        shown: ReplicateModel = {
            "url": f"{request.base_url}v1/models/{quote(owner, safe='')}/{quote(model.id, safe='')}",
            "owner": owner,
            "name": model.id,
            "description": None,
            "visibility": "public",
            "github_url": None,
            "paper_url": None,
            "license_url": None,
            "run_count": 0,
            "cover_image_url": None,
            "default_example": None,
            "latest_version": self._version(model),
        }
        return JSONResponse(shown)

    @described(operations.VERSIONS)
    async def _versions(self, request: Request) -> Response:
        version = self._version(self._named(request, "name"))
        page: ModelVersions = {"next": None, "previous": None, "results": [version]}
        return JSONResponse(page)

    @described(operations.VERSION)
    async def _one_version(self, request: Request) -> Response:
        self._named(request, "name")
        return JSONResponse(self._version(self._named(request, "version")))

    def _named(self, request: Request, field: str) -> ServedModel:
        """Raises ModelNotFoundError."""
        return self._desk.model(request.path_params[field], field)

    def _version(self, model: ServedModel) -> ModelVersion:
        schemas = {"Input": PredictionInput.model_json_schema(), "Output": _OUTPUT_SCHEMA}
        return {
            "id": model.id,
            "created_at": datetime.fromtimestamp(self._started_at, UTC).isoformat(),
            "cog_version": "",  # not made with Cog
            "openapi_schema": {
                "openapi": "3.0.2",
                "info": {"title": model.id, "version": model.id},
                "paths": {},
                "components": {"schemas": schemas},
            },
        }
