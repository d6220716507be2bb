"""The ASGI application: routes, and errors in one form."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from ray.serve import metrics
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from deployments.engine.cost import CostModel
from deployments.engine.models import ModelInfo
from serve.calls.fleet import Fleet
from serve.calls.pipeline import Pipeline
from serve.calls.readiness import Readiness
from serve.capacity.admission import Admission
from serve.capacity.config_problems import crowding_problem, drain_problem
from serve.capacity.rate_limits import RateLimits
from serve.clients import Clients
from serve.config.app import AppConfig
from serve.errors import MidstepError, NotReadyError
from serve.http.authentication import Authentication
from serve.http.files import FilesRoute
from serve.http.front_desk import FrontDesk
from serve.http.openai.images import ImagesRoute
from serve.http.openai.models import ModelsRoutes
from serve.http.problems import on_fault, on_http_exception, on_midstep_error
from serve.http.replicate.models import ReplicateModelsRoutes
from serve.http.replicate.prediction import FILES_PATH, PREDICTIONS_PATH, describe
from serve.http.replicate.predictions import PredictionsRoutes
from serve.jobs.load import JobLoad
from serve.jobs.opening import opened
from serve.jobs.resources import job_store, object_store
from serve.served_model import ServedModel

logger = logging.getLogger("ray.serve")

_READY_TIMEOUT_S = 2.0
_LEARNING_PAUSE_S = 1.0
_PRESIGNED_S = 3600.0
_SHOW_INTERVAL_S = 5.0


def build_http_app(
    config: AppConfig,
    info: ModelInfo,
    pipeline: Pipeline,
    fleet: Fleet,
    look_for_canceled: Callable[[], None],
) -> Starlette:
    """look_for_canceled: called when a job was canceled, for runners to stop it"""
    store = job_store(config.jobs, describe)
    model = ServedModel.of(config, info, lambda: pipeline.known_cost_model)
    job_load = JobLoad(store, fleet.num_ingresses)
    limits = config.limits
    admission = Admission(limits.max_queue, limits.max_wait_s, fleet.denoisers_per_ingress, job_load.share)
    desk = FrontDesk({model.id: model}, pipeline, admission, RateLimits(fleet.num_ingresses), store)
    models, replicate_models = ModelsRoutes(desk), ReplicateModelsRoutes(desk)
    images = ImagesRoute(desk)
    predictions = PredictionsRoutes(config, desk, store, look_for_canceled)
    files = FilesRoute(object_store(config.jobs), _PRESIGNED_S if config.jobs.presigned_urls else None)

    autoscaling = {name: stage.autoscaling for name, stage in config.stages.items()}
    readiness = Readiness(pipeline, fleet, autoscaling)

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def readyz(_: Request) -> Response:
        await readiness.check(_READY_TIMEOUT_S)
        return PlainTextResponse("ok")

    async def learn_costs() -> None:
        cost = await _learned(pipeline, readiness)
        for problem in (drain_problem(config, info, cost), crowding_problem(config, info, cost)):
            if problem:
                logger.warning("%s", problem)

    # What knows no keys: browsers and Replicate's client fetch images, by URLs that nobody can guess.
    open_routes = [
        Route(FILES_PATH + "/{key:path}", files.get),
        Route("/livez", livez),
        Route("/readyz", readyz),
    ]
    routes = [
        Route("/v1/images/generations", images.generate, methods=["POST"]),
        Route("/v1/models", models.page),
        Route("/v1/models/{id}", models.get),
        Route("/v1/models/{owner}/{name}", replicate_models.model),
        Route("/v1/models/{owner}/{name}/versions", replicate_models.versions),
        Route("/v1/models/{owner}/{name}/versions/{version}", replicate_models.version),
        Route("/v1/models/{owner}/{name}/predictions", predictions.create, methods=["POST"]),
        Route(PREDICTIONS_PATH, predictions.create, methods=["POST"]),
        Route(PREDICTIONS_PATH, predictions.page),
        Route(PREDICTIONS_PATH + "/{job_id}", predictions.get),
        Route(PREDICTIONS_PATH + "/{job_id}/cancel", predictions.cancel, methods=["POST"]),
        Route(PREDICTIONS_PATH + "/{job_id}/stream", predictions.stream),
        *open_routes,
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with opened(store):
            limit = _show_limit(config.limits.max_wait_s)
            loops = (learn_costs(), fleet.watch(), job_load.watch(), limit)
            tasks = [asyncio.create_task(loop) for loop in loops]
            yield
            for task in tasks:
                task.cancel()

    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Authentication, clients=Clients(config.api_keys), open_routes=open_routes)],
        exception_handlers={
            MidstepError: on_midstep_error,
            HTTPException: on_http_exception,
            Exception: on_fault,
        },
    )
    # For serve.http.problems.
    app.state.route_paths = list(dict.fromkeys(route.path for route in routes))
    app.state.refused = metrics.Counter(
        "midstep_refused_requests_total", "HTTP requests answered with an error, by its code.", ("code",)
    )
    return app


async def _learned(pipeline: Pipeline, readiness: Readiness) -> CostModel:
    """For estimates, also where nobody asks /readyz of this replica."""
    while (cost := pipeline.known_cost_model) is None:
        await asyncio.sleep(_LEARNING_PAUSE_S)
        with suppress(NotReadyError):
            await readiness.check(_READY_TIMEOUT_S)
    return cost


async def _show_limit(max_wait_s: float) -> None:
    """For alerts. Ray exports a gauge once for each time it is set."""
    gauge = metrics.Gauge("midstep_max_wait_seconds", "The setting limits.max_wait_s.")
    while True:
        gauge.set(max_wait_s)
        await asyncio.sleep(_SHOW_INTERVAL_S)
