"""`GET /v1/models` and below: what is served, as OpenAI's and as Replicate's clients ask for it."""

import time
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.acceptance import Acceptance
from serve.config.model import ModelConfig
from serve.http.replicate.schema import PredictionInput

_OUTPUT_SCHEMA = {"type": "array", "items": {"type": "string", "format": "uri"}}


class ModelsRoutes:
    """The routes' handlers. At Replicate a model has an owner and versions: here any owner, and one version
    that is called as the model is."""

    def __init__(self, model: ModelConfig, acceptance: Acceptance) -> None:
        self._model = model
        self._acceptance = acceptance
        self._started_at = time.time()

    async def page(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def get(self, request: Request) -> Response:
        self._check(request, "id")
        return JSONResponse(self._described())

    async def replicate_model(self, request: Request) -> Response:
        self._check(request, "name")
        return JSONResponse(
            {
                "url": str(request.url),
                "owner": request.path_params["owner"],
                "name": self._model.id,
                "description": None,
                "visibility": "public",
                "github_url": None,
                "paper_url": None,
                "license_url": None,
                "run_count": 0,
                "cover_image_url": None,
                "default_example": None,
                "latest_version": self._version(),
            }
        )

    async def versions(self, request: Request) -> Response:
        self._check(request, "name")
        return JSONResponse({"next": None, "previous": None, "results": [self._version()]})

    async def version(self, request: Request) -> Response:
        self._check(request, "name")
        self._check(request, "version")
        return JSONResponse(self._version())

    def _check(self, request: Request, field: str) -> None:
        """Raises ModelNotFoundError."""
        self._acceptance.check_model(request.path_params[field], field)

    def _described(self) -> dict[str, Any]:
        return {
            "id": self._model.id,
            "object": "model",
            "created": int(self._started_at),
            "owned_by": "midstep",
            "device": self._model.device,
        }

    def _version(self) -> dict[str, Any]:
        schemas = {"Input": PredictionInput.model_json_schema(), "Output": _OUTPUT_SCHEMA}
        return {
            "id": self._model.id,
            "created_at": datetime.fromtimestamp(self._started_at, UTC).isoformat(),
            "cog_version": "",  # not made with Cog
            "openapi_schema": {
                "openapi": "3.0.2",
                "info": {"title": self._model.id, "version": self._model.id},
                "paths": {},
                "components": {"schemas": schemas},
            },
        }
