"""The ASGI application: routes, and one form for errors."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from ray.serve import metrics
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp

from deployments.engine.cost import CostModel
from deployments.engine.model_source import ModelInfo
from serve.adapters import Adapters
from serve.calls.denoiser_statuses import DenoiserStatuses
from serve.calls.fleet import Fleet
from serve.calls.live_status import StatusBoard
from serve.calls.pipeline import Pipeline
from serve.calls.readiness import Readiness
from serve.capacity.admission import Admission
from serve.capacity.config_problems import crowding_problem, drain_problem
from serve.capacity.rate_limits import RateLimits
from serve.catalog import Catalog
from serve.clients import Clients
from serve.config.app import AppConfig
from serve.http.a1111.routes import a1111_routes
from serve.http.adapter_sources import AdapterSources
from serve.http.adapters import AdaptersRoutes
from serve.http.authentication import Authentication
from serve.http.cors import Cors
from serve.http.departures import Departures
from serve.http.docs import DocsRoutes
from serve.http.files import FilesRoute
from serve.http.front_desk import FrontDesk
from serve.http.health import HealthRoutes, learned_cost
from serve.http.methods import Options
from serve.http.metrics import MetricsRoute
from serve.http.openai.answer_images import AnswerImages
from serve.http.openai.edit_bodies import EditBodies
from serve.http.openai.images import ImagesRoute
from serve.http.openai.models import ModelsRoutes
from serve.http.openapi import openapi_document
from serve.http.picture_sources import PictureSources
from serve.http.playground.routes import PlaygroundRoutes
from serve.http.problems import EXCEPTION_HANDLERS
from serve.http.replicate.account import AccountRoutes
from serve.http.replicate.files import ReplicateFilesRoutes
from serve.http.replicate.models import ReplicateModelsRoutes
from serve.http.replicate.prediction import describe
from serve.http.replicate.prediction_events import PredictionEventsRoute
from serve.http.replicate.predictions import PredictionsRoutes
from serve.http.status import StatusRoutes
from serve.http.versionless import with_versionless
from serve.jobs.inputs import JobInputs
from serve.jobs.load import JobLoad
from serve.jobs.opening import opened
from serve.jobs.resources import job_store, object_store
from serve.jobs.uploads import Uploads
from serve.served_model import ServedModel
from serve.served_models import ServedModels

logger = logging.getLogger("ray.serve")

_PRESIGNED_S = 3600.0
_SHOW_INTERVAL_S = 5.0
_CATALOG_WAIT_S = 10.0


class _Application(Starlette):
    """Starlette's application with CORS around everything, including answers to internal errors."""

    def __init__(self, cors_origins: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._cors_origins = cors_origins

    def build_middleware_stack(self) -> ASGIApp:
        stack = super().build_middleware_stack()
        return Cors(stack, self._cors_origins) if self._cors_origins else stack


class _Stores:
    """What is kept: jobs, objects and uploaded files; and pictures that requests name, there or elsewhere."""

    def __init__(self, config: AppConfig) -> None:
        self.jobs = job_store(config.jobs, [config.model.shown_id], describe)
        self.objects = object_store(config.jobs)
        self.uploads = Uploads(self.jobs.database, self.objects)
        self.pictures = PictureSources(
            self.uploads,
            self.objects,
            config.limits.max_image_bytes,
            config.jobs.allow_private_webhooks,
        )


def build_http_app(
    config: AppConfig,
    info: ModelInfo,
    pipeline: Pipeline,
    fleet: Fleet,
) -> Starlette:
    stores, catalog = _Stores(config), Catalog(config)
    adapters = Adapters.of(config)
    model = replace(ServedModel.of(config, info, pipeline.costs.known), adapters=adapters)
    models = ServedModels(config, model, catalog, pipeline)
    job_load = JobLoad(stores.jobs, fleet.num_ingresses, lambda request: models.of(request).work_s(request))
    readiness = Readiness(pipeline, fleet, {name: one.min_replicas for name, one in config.stages.items()})
    admission = Admission(
        config.limits.max_queue, config.limits.max_wait_s, fleet.denoisers_per_ingress, job_load.share
    )
    limits, inputs = RateLimits(fleet.num_ingresses), JobInputs(stores.jobs.database, stores.objects)
    adapter_sources = AdapterSources(adapters)
    desk = FrontDesk(models, pipeline, admission, limits, stores.jobs, inputs, adapter_sources)
    routes, open_routes = _routes(config, info, desk, stores, readiness, _status(config, fleet, models))

    async def warn_of_problems() -> None:
        _warn_of_problems(config, info, await learned_cost(pipeline, readiness))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # A replica gets requests as soon as this has begun, so none waits for an import.
        await asyncio.to_thread(model.prepare)
        watching = fleet.watch(), job_load.watch(), catalog.watch(), _show_limit(config.limits.max_wait_s)
        fetching = stores.pictures.running(), adapter_sources.running()
        async with opened(stores.jobs), fetching[0], fetching[1], _running(warn_of_problems(), *watching):
            await catalog.ready(_CATALOG_WAIT_S)
            yield

    app = _Application(
        config.http.cors_origins,
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(Departures),
            Middleware(Authentication, clients=Clients(config.api_keys), open_routes=open_routes),
            Middleware(Options),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.router.redirect_slashes = False  # an error says more about a path without an id
    # Used by serve.http.problems.
    app.state.refused = metrics.Counter(
        "midstep_refused_requests_total", "HTTP requests answered with an error, by its code.", ("code",)
    )
    return app


def _routes(
    config: AppConfig,
    info: ModelInfo,
    desk: FrontDesk,
    stores: _Stores,
    readiness: Readiness,
    status: StatusRoutes,
) -> tuple[list[Route], list[Route]]:
    """All routes, and those of them that need no keys: browsers and Replicate's client fetch images by URLs
    that nobody can guess."""
    objects, pictures = stores.objects, stores.pictures
    files = ReplicateFilesRoutes(stores.uploads, objects, config.jobs.public_url)
    predictions = PredictionsRoutes(
        config, desk, stores.jobs, pictures, config.images_per_runner(info) * config.jobs.num_runners
    )
    open_routes = with_versionless(
        [
            *predictions.open_routes,
            *files.open_routes,
            *FilesRoute(objects, _PRESIGNED_S if config.jobs.presigned_urls else None).routes,
            *HealthRoutes(readiness).routes,
            *PlaygroundRoutes(config.http.playground, config.jobs.presigned_urls).routes,
            *DocsRoutes(lambda: openapi_document(routes, open_routes, bool(config.api_keys))).routes,
        ]
    )
    routes = [
        *with_versionless(
            [
                *ImagesRoute(
                    desk, AnswerImages(objects, config.jobs), EditBodies(pictures, desk.check_room)
                ).routes,
                *ModelsRoutes(desk, config.jobs.public_url).routes,
                *AdaptersRoutes(desk.models.configured.adapters, desk.models, config.jobs.public_url).routes,
                *ReplicateModelsRoutes(desk, config.jobs.public_url).routes,
                *predictions.routes,
                *PredictionEventsRoute(predictions, stores.jobs, objects).routes,
                *files.routes,
                *AccountRoutes(config).routes,
                *status.routes,
                *MetricsRoute(config.http.metrics).routes,
            ]
        ),
        *a1111_routes(desk, pictures, stores.jobs.database),
        *open_routes,
    ]
    return routes, open_routes


def _status(config: AppConfig, fleet: Fleet, models: ServedModels) -> StatusRoutes:
    board = StatusBoard(fleet, config.model.device, lambda: models.refs, DenoiserStatuses())
    return StatusRoutes(board)


def _warn_of_problems(config: AppConfig, info: ModelInfo, cost: CostModel) -> None:
    for problem in (drain_problem(config, info, cost), crowding_problem(config, info, cost)):
        if problem:
            logger.warning("%s", problem)


@asynccontextmanager
async def _running(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def _show_limit(max_wait_s: float) -> None:
    """Exports the setting for alerts, again and again, since Ray exports a gauge only after each `set`."""
    gauge = metrics.Gauge("midstep_max_wait_seconds", "The setting limits.max_wait_s.")
    while True:
        gauge.set(max_wait_s)
        await asyncio.sleep(_SHOW_INTERVAL_S)
