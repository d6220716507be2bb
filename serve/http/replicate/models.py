"""`GET /v1/models/{owner}/{name}` and below: a model and its versions, for Replicate's clients."""

from datetime import UTC, datetime
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.http.addresses import base_url
from serve.http.front_desk import FrontDesk
from serve.http.operations import described
from serve.http.replicate import operations
from serve.http.replicate.answers import ModelVersion, ModelVersions, ReplicateModel
from serve.http.replicate.schema import PredictionInput
from serve.served_model import ServedModel

MODELS_PATH = "/v1/models"
OWNER = "midstep"  # for models whose id has no owner
_OUTPUT_SCHEMA = {"type": "array", "items": {"type": "string", "format": "uri"}}


class ReplicateModelsRoutes:
    """The handlers of the routes. At Replicate a model has an owner and versions. Here it has any owner,
    unless its id has one, and one version with the model's name.

    public_url: from the configuration
    """

    def __init__(self, desk: FrontDesk, public_url: str | None) -> None:
        self._desk = desk
        self._public_url = public_url

    @property
    def routes(self) -> list[Route]:
        path = MODELS_PATH + "/{owner}/{name}"
        return [
            Route(path, self._model),
            Route(f"{path}/versions", self._versions),
            Route(f"{path}/versions/{{version:path}}", self._one_version),
        ]

    @described(operations.MODEL)
    async def _model(self, request: Request) -> Response:
        model = self._named(request)
        owner = request.path_params["owner"]
        base = base_url(request, self._public_url)
        return JSONResponse(describe_model(model, owner, base, self._desk.started_at))

    @described(operations.VERSIONS)
    async def _versions(self, request: Request) -> Response:
        version = _describe_version(self._named(request), self._desk.started_at)
        page: ModelVersions = {"next": None, "previous": None, "results": [version]}
        return JSONResponse(page)

    @described(operations.VERSION)
    async def _one_version(self, request: Request) -> Response:
        self._named(request)
        model = self._desk.model(request.path_params["version"], "version")
        return JSONResponse(_describe_version(model, self._desk.started_at))

    def _named(self, request: Request) -> ServedModel:
        """The model in the path. Raises ModelNotFoundError."""
        name: str = request.path_params["name"]
        with_owner = f"{request.path_params['owner']}/{name}"
        return self._desk.model(with_owner if with_owner in self._desk.models.names else name, "name")


def owner_and_name(model: ServedModel) -> tuple[str, str]:
    """Owner and name from an id. An id `owner/name` contains both."""
    owner, _, name = model.id.rpartition("/")
    return owner or OWNER, name


def describe_model(model: ServedModel, owner: str, base: str, created_at: float) -> ReplicateModel:
    """Replicate's model object. owner: as the client named it; base: the server's URL; created_at: as of a
    job"""
    name = owner_and_name(model)[1]
    return {
        "url": f"{base}{MODELS_PATH}/{quote(owner, safe='')}/{quote(name, safe='')}",
        "owner": owner,
        "name": name,
        "description": None,
        "visibility": "public",
        "is_official": False,
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": _describe_version(model, created_at),
    }


def _describe_version(model: ServedModel, created_at: float) -> ModelVersion:
    schemas = {"Input": PredictionInput.model_json_schema(), "Output": _OUTPUT_SCHEMA}
    return {
        "id": model.id,
        "created_at": datetime.fromtimestamp(created_at, UTC).isoformat(),
        "cog_version": "",  # not made with Cog
        "openapi_schema": {
            "openapi": "3.0.2",
            "info": {"title": model.id, "version": model.id},
            "paths": {},
            "components": {"schemas": schemas},
        },
    }
