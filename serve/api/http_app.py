"""The ASGI application: routes, and errors in one form."""

import time

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from deployments.engine.models import ModelInfo
from deployments.engine.samplers import SamplerTables
from serve.admission import Admission, Estimator
from serve.api.images import ImagesRoute
from serve.api.problems import on_fault, on_http_exception, on_midstep_error
from serve.config import AppConfig
from serve.errors import MidstepError
from serve.pipeline import Pipeline

_READY_TIMEOUT_S = 2.0


def build_http_app(config: AppConfig, info: ModelInfo, pipeline: Pipeline) -> Starlette:
    started = int(time.time())
    tables = SamplerTables(info.scheduler_config)
    num_denoisers = max(1, config.denoiser.autoscaling.min_replicas)
    estimator = Estimator(config.engine_config(info), tables, info.scale_factor, num_denoisers)
    images = ImagesRoute(config, info, tables, pipeline, Admission(config.limits.max_queue, estimator))

    async def models(_: Request) -> Response:
        model = {
            "id": config.model.id,
            "object": "model",
            "created": started,
            "owned_by": "midstep",
            "device": config.model.device,
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def readyz(_: Request) -> Response:
        await pipeline.check_ready(_READY_TIMEOUT_S)
        return PlainTextResponse("ok")

    routes = [
        Route("/v1/images/generations", images.generate, methods=["POST"]),
        Route("/v1/models", models),
        Route("/livez", livez),
        Route("/readyz", readyz),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            MidstepError: on_midstep_error,
            HTTPException: on_http_exception,
            Exception: on_fault,
        },
    )
    app.state.route_paths = [route.path for route in routes]
    return app
