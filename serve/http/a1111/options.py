"""`GET` and `POST /sdapi/v1/options`: the options of a client, of which the model is the most important."""

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.errors import InvalidInputError, InvalidRequestError, ModelNotFoundError, NotReadyError
from serve.http.a1111 import operations
from serve.http.a1111.models import model_named
from serve.http.a1111.settings import SettingsBody, changes_of, shown_options
from serve.http.authentication import client_of
from serve.http.body import bounded_body, parse_body
from serve.http.operations import described
from serve.jobs.client_options import ClientOptions
from serve.served_model import ServedModel
from serve.served_models import ServedModels

_MODEL = "sd_model_checkpoint"


class OptionsRoutes:
    """The handlers of the routes."""

    def __init__(self, models: ServedModels, options: ClientOptions) -> None:
        self._models = models
        self._options = options

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/sdapi/v1/options", self._get),
            Route("/sdapi/v1/options", self._set, methods=["POST"]),
        ]

    async def model_of(self, client: str) -> ServedModel:
        """The model that a client has chosen, or the configured one if that is not there any more."""
        try:
            return model_named(self._models, (await self._options.of(client)).get(_MODEL), _MODEL)
        except (ModelNotFoundError, NotReadyError):
            return self._models.configured

    @described(operations.OPTIONS)
    async def _get(self, request: Request) -> Response:
        client = client_of(request).name
        model = await self.model_of(client)
        return JSONResponse(shown_options(await self._options.of(client), model))

    @described(operations.SET_OPTIONS)
    async def _set(self, request: Request) -> Response:
        """Answers null like A1111, or warnings if there are any."""
        client, raw = client_of(request).name, await bounded_body(request)
        try:
            body = await asyncio.to_thread(parse_body, SettingsBody, raw)
            if body.sd_model_checkpoint is not None:
                # Kept by its id, since clients choose by other names too.
                model = model_named(self._models, body.sd_model_checkpoint, _MODEL)
                body = body.model_copy(update={_MODEL: model.id})
            shown = shown_options(await self._options.of(client), await self.model_of(client))
            changes, warnings = changes_of(body, shown)
        except InvalidRequestError as error:  # its clients expect 422
            raise InvalidInputError(error.detail, error.param) from error
        await self._options.change(client, changes)
        return JSONResponse({"warnings": warnings} if warnings else None)
