"""`GET /v1/models` and `/v1/models/{id}`: the served models in OpenAI's form."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.engine.samplers import SAMPLERS, canonical_sampler
from serve.http.addresses import base_url
from serve.http.front_desk import FrontDesk
from serve.http.openai import operations
from serve.http.openai.answers import Model, ModelDefaults, ModelLimits, Models
from serve.http.operations import described
from serve.http.replicate.answers import ReplicateModel
from serve.http.replicate.models import MODELS_PATH, describe_model, owner_and_name
from serve.served_model import ServedModel


class ModelsRoutes:
    """The handlers of the routes. public_url: from the configuration"""

    def __init__(self, desk: FrontDesk, public_url: str | None) -> None:
        self._desk = desk
        self._public_url = public_url

    @property
    def routes(self) -> list[Route]:
        return [Route(MODELS_PATH, self._page), Route(MODELS_PATH + "/{id}", self._get)]

    @described(operations.MODELS)
    async def _page(self, request: Request) -> Response:
        """The only page, also for Replicate's clients: OpenAI's read `data`, Replicate's read `results`."""
        models = self._desk.models.all
        page: Models = {
            "object": "list",
            "data": [self._described(one) for one in models],
            "next": None,
            "previous": None,
            "results": [self._as_at_replicate(one, request) for one in models],
        }
        return JSONResponse(page)

    @described(operations.MODEL)
    async def _get(self, request: Request) -> Response:
        return JSONResponse(self._described(self._desk.model(request.path_params["id"], "id")))

    def _as_at_replicate(self, model: ServedModel, request: Request) -> ReplicateModel:
        owner, _ = owner_and_name(model)
        return describe_model(model, owner, base_url(request, self._public_url), self._desk.started_at)

    def _described(self, model: ServedModel) -> Model:
        return {
            "id": model.id,
            "object": "model",
            "created": int(self._desk.started_at),
            "owned_by": "midstep",
            "device": model.device,
            "aliases": list(model.aliases),
            "family": model.family,
            "size_bytes": model.size_bytes,
            "is_resident": self._desk.models.is_resident(model),
            "needs_mask": model.info.needs_mask,
            "default_width": model.default_size[1],
            "default_height": model.default_size[0],
            "samplers": list(SAMPLERS),
            "defaults": _defaults(model),
            "limits": _limits(model),
        }


def _defaults(model: ServedModel) -> ModelDefaults:
    height, width = model.default_size
    return {
        "sampler": canonical_sampler(model.defaults.sampler),
        "num_inference_steps": model.defaults.num_inference_steps,
        "guidance_scale": model.defaults.guidance_scale,
        "width": width,
        "height": height,
        "negative_prompt": model.defaults.negative_prompt,
    }


def _limits(model: ServedModel) -> ModelLimits:
    limits = model.limits
    return {
        "min_size": limits.min_size,
        "max_width": limits.max_width,
        "max_height": limits.max_height,
        "max_pixels": limits.max_pixels,
        "size_multiple": model.info.scale_factor,
        "max_num_inference_steps": limits.max_num_inference_steps,
        "max_num_images": limits.max_num_images,
        "max_prompt_length": limits.max_prompt_length,
    }
