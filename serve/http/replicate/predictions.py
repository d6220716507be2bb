"""Replicate's dialect: create, get, follow, cancel and delete jobs."""

import asyncio
import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Container
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import urlencode

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.clients import Clients
from serve.config.app import AppConfig
from serve.errors import (
    InvalidInputError,
    InvalidRequestError,
    JobNotFoundError,
    JobStoreUnavailableError,
    StorageFullError,
)
from serve.generation import GenerationRequest
from serve.http.addresses import base_url
from serve.http.authentication import client_of
from serve.http.body import bounded_body
from serve.http.event_stream import EventStream
from serve.http.files import FILES_PATH
from serve.http.front_desk import FrontDesk
from serve.http.operations import described
from serve.http.picture_sources import PictureSources
from serve.http.replicate import operations, paging
from serve.http.replicate.answers import Forecast, KnownPrediction, Prediction, Predictions
from serve.http.replicate.prediction import PREDICTIONS_PATH, describe, logs, output_urls
from serve.http.replicate.schema import (
    PredictionBody,
    given_input,
    idempotency_key,
    lifetime_s,
    read_body,
    wait_s,
    wanted_of,
)
from serve.jobs.ids import is_id, new_id
from serve.jobs.job import IdempotencyKey, Job, JobState, NewJob, Webhook
from serve.jobs.store import JobStore
from serve.outbound import check_url
from serve.wanted import Wanted

logger = logging.getLogger("ray.serve")

_EVENT_ID = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")
# Replicate's npm client turns answers from such a path into files with a `blob()`.
_SIGNED_STREAM = FILES_PATH + "/predictions/{job_id}/stream"
_UNKNOWN: Forecast = {"queue_position": None, "eta_s": None}


class PredictionsRoutes:
    """The handlers of the routes."""

    def __init__(
        self,
        config: AppConfig,
        desk: FrontDesk,
        store: JobStore,
        sources: PictureSources,
        images_at_once: int,
    ) -> None:
        """images_at_once: images of jobs in all runners together"""
        self._config = config
        self._desk = desk
        self._store = store
        self._sources = sources
        self._images_at_once = images_at_once
        self._clients = Clients(config.api_keys)

    @property
    def routes(self) -> list[Route]:
        one = PREDICTIONS_PATH + "/{job_id}"
        return [
            Route("/v1/models/{owner}/{name}/predictions", self._create, methods=["POST"]),
            Route(PREDICTIONS_PATH, self._create, methods=["POST"]),
            Route(PREDICTIONS_PATH, self._page),
            Route(one, self._get),
            Route(one, self._delete, methods=["DELETE"]),
            Route(f"{one}/cancel", self._cancel, methods=["POST"]),
            Route(f"{one}/stream", self._stream),
        ]

    @property
    def open_routes(self) -> list[Route]:
        """Routes without an API key, because the signature in a stream's URL is enough."""
        return [Route(_SIGNED_STREAM, self._signed_stream, include_in_schema=False)]

    async def job(self, request: Request) -> Job:
        """The client's job in the path. Raises JobNotFoundError."""
        return _found(await self._store.get(_job_id(request), client_of(request).name), request)

    async def with_forecast(self, job: Job) -> Prediction:
        """The prediction with its place in the queue and its remaining time."""
        if job.state.is_final:
            return {**self._shown(job), **_UNKNOWN}
        position = await self._store.queue_position(job)
        return {**self._shown(job), "queue_position": position, "eta_s": self._eta_s(job, position or 0)}

    @described(operations.CREATE)
    async def _create(self, request: Request) -> Response:
        """Answers 201 once the job is on disk, or with `Prefer: wait` when it or the wait is over."""
        came_at = time.monotonic()
        raw = await bounded_body(request)
        job_id = new_id()
        try:
            wait = wait_s(request.headers.get("prefer"))
            body = await asyncio.to_thread(read_body, raw)  # in a thread, because a large one takes a while
            wanted = wanted_of(body, *model_named(request, body, self._desk.models.names))
            key = await asyncio.to_thread(_idempotency_key, request, raw)
            new_job = self._new_job(request, body, key)
            job = await self._earlier(request, key)
            if job is None:
                self._desk.check(wanted)
                wanted = await self._with_pictures(wanted, body)
                job = await self._desk.submit_job(wanted, client_of(request), job_id, new_job)
        except InvalidRequestError as error:
            raise InvalidInputError(error.detail, error.param) from error
        location = f"{job.base_url}{PREDICTIONS_PATH}/{job.id}"
        # The place in the queue would need another read of the database; clients get it when they ask.
        shown: Prediction = {**self._shown(job), **_UNKNOWN}
        if wait is not None:
            # It is on disk, and its client must hear of that.
            with suppress(JobStoreUnavailableError, StorageFullError):
                shown = await self._waited_for(job, came_at + wait)
        return JSONResponse(shown, 201, {"location": location})

    @described(operations.GET)
    async def _get(self, request: Request) -> Response:
        return JSONResponse(await self.with_forecast(await self.job(request)))

    @described(operations.PAGE)
    async def _page(self, request: Request) -> Response:
        """The client's own jobs, newest first. `cursor` is `next` or `previous` of another page."""
        page = await self._store.page(*paging.asked(request))
        shown: Predictions = {
            **paging.links(page, f"{self._base_url(request)}{PREDICTIONS_PATH}"),
            "results": [self._shown(job) for job in page.items],
        }
        return JSONResponse(shown)

    @described(operations.CANCEL)
    async def _cancel(self, request: Request) -> Response:
        """Cancels a job. A finished job stays as it is."""
        job = await self._store.cancel(_job_id(request), client_of(request).name)
        return JSONResponse(await self.with_forecast(_found(job, request)))

    @described(operations.DELETE)
    async def _delete(self, request: Request) -> Response:
        if not await self._store.delete(_job_id(request), client_of(request).name):
            raise _not_found(request)
        return Response(status_code=204)

    @described(operations.STREAM)
    async def _stream(self, request: Request) -> Response:
        return self._event_stream(await self.job(request), request)

    async def _signed_stream(self, request: Request) -> Response:
        """The stream at the URL in a prediction. Replicate's npm client sends no key there."""
        owner, signature = (request.query_params.get(name, "") for name in ("owner", "signature"))
        job_id = _job_id(request)
        if not self._clients.is_signature(owner, job_id, signature):
            raise _not_found(request)
        return self._event_stream(_found(await self._store.get(job_id, owner), request), request)

    def _event_stream(self, job: Job, request: Request) -> Response:
        """Server-sent events. `Last-Event-ID` continues where another connection ended."""
        seen = _Seen.parse(request.headers.get("last-event-id", ""))
        return EventStream(self._events(job, seen))

    async def _events(self, job: Job, seen: "_Seen") -> AsyncGenerator[ServerSentEvent, None]:
        async with aclosing(self._store.follow(job)) as states:
            async for now in states:
                job = now
                for url in output_urls(job)[seen.num_outputs :]:
                    seen = _Seen(seen.num_outputs + 1, seen.steps)
                    yield ServerSentEvent(url, event="output", id=str(seen))
                if job.steps_done > seen.steps:
                    seen = _Seen(seen.num_outputs, job.steps_done)
                    yield ServerSentEvent(logs(job).strip(), event="logs", id=str(seen))
        if job.state is JobState.FAILED:
            yield ServerSentEvent(json.dumps({"detail": job.error}), event="error", id=str(seen))
        reason = {JobState.CANCELED: {"reason": "canceled"}, JobState.FAILED: {"reason": "error"}}
        yield ServerSentEvent(json.dumps(reason.get(job.state, {})), event="done", id=str(seen))

    def _new_job(
        self, request: Request, body: PredictionBody, key: IdempotencyKey | None
    ) -> Callable[[GenerationRequest], NewJob]:
        """Makes the job's record from the accepted request. Raises InvalidRequestError."""
        return partial(
            NewJob,
            owner=client_of(request).name,
            input=given_input(body),
            base_url=self._base_url(request),
            webhook=self._webhook(body),
            lifetime_s=lifetime_s(request.headers.get("cancel-after")),
            idempotency_key=key,
        )

    async def _earlier(self, request: Request, key: IdempotencyKey | None) -> Job | None:
        """The job that a repeated submission has already made. Its picture and its adapters, which the prompt
        may name too, may no longer be where they were."""
        if key is None:
            return None
        return await self._store.with_key(client_of(request).name, key)

    async def _with_pictures(self, wanted: Wanted, body: PredictionBody) -> Wanted:
        async def read(field: str, url: str | None) -> bytes | None:
            return None if url is None else await self._sources.read(url, wanted.name(field))

        image = await read("image", body.input.image)
        return replace(wanted, image=image, mask=await read("mask", body.input.mask))

    def _webhook(self, body: PredictionBody) -> Webhook | None:
        if body.webhook is None:
            return None
        check_url(body.webhook, "webhook", self._config.jobs.allow_private_webhooks)
        return Webhook(body.webhook, body.webhook_events)

    def _base_url(self, request: Request) -> str:
        return base_url(request, self._config.jobs.public_url)

    async def _waited_for(self, job: Job, until: float) -> Prediction:
        """The prediction when it is finished, or at the given time. until: on the monotonic clock"""
        try:
            async with asyncio.timeout(until - time.monotonic()), aclosing(self._store.follow(job)) as states:
                async for now in states:
                    job = now
        except TimeoutError:
            job = await self._store.get(job.id, job.owner) or job
        # As at Replicate: its client takes any status except "starting" for the end.
        shown = await self.with_forecast(job)
        return shown if job.state.is_final else {**shown, "status": JobState.STARTING.value}

    def _shown(self, job: Job) -> KnownPrediction:
        """The prediction with a stream URL that needs no key."""
        query = urlencode({"owner": job.owner, "signature": self._clients.signature(job.owner, job.id)})
        shown = describe(job)
        shown["urls"]["stream"] = f"{job.base_url}{_SIGNED_STREAM.format(job_id=job.id)}?{query}"
        return shown

    def _eta_s(self, job: Job, position: int) -> float | None:
        """A rough estimate: the rest of the job alone, plus the same for each round of jobs before it."""
        alone_s = self._alone_s(job)
        if alone_s is None:
            return None
        rounds = position / self._images_at_once
        return round(alone_s * (1 - job.fraction_done + rounds), 2)

    def _alone_s(self, job: Job) -> float | None:
        """Seconds that the whole job takes alone; None if costs are not known yet."""
        model = self._desk.models.of(job.request)
        cost = model.known_cost()
        return None if cost is None else model.estimator.latency_s(job.request, cost)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a stream's reader has seen: numbers of images and of steps. It is also the id of its events."""

    num_outputs: int = 0
    steps: int = 0

    def __str__(self) -> str:
        return f"{self.num_outputs}-{self.steps}"

    @classmethod
    def parse(cls, event_id: str) -> "_Seen":
        """The numbers in an id; the start if it is not one of ours."""
        if (match := _EVENT_ID.fullmatch(event_id)) is None:
            return cls()
        return cls(*map(int, match.groups()))


def model_named(request: Request, body: PredictionBody, served: Container[str]) -> tuple[str, str]:
    """The requested model, and the field that names it.

    Clients send `owner/name`, `owner/name:version` or `version`, and an id may itself have a slash. Raises
    InvalidRequestError.
    """
    if "name" in request.path_params:
        field, given = "{owner}/{name}", "{owner}/{name}".format(**request.path_params)
    elif body.version is not None:
        field, given = "version", body.version
    else:
        raise InvalidRequestError("version: is required; it names the model.", "version")
    without_version = given.partition(":")[0]
    name = without_version.rpartition("/")[2]
    return next((one for one in (given, without_version, name) if one in served), name), field


def _idempotency_key(request: Request, raw: bytes) -> IdempotencyKey | None:
    """The request's key. Raises InvalidRequestError."""
    key = idempotency_key(request.headers.get("idempotency-key"))
    return None if key is None else IdempotencyKey(key, _fingerprint(request, raw))


def _fingerprint(request: Request, raw: bytes) -> str:
    """Includes the model in the path, but not the path, which may be written with and without /v1."""
    named = repr(sorted(request.path_params.items())).encode()
    return hashlib.sha256(named + b"\n" + raw).hexdigest()


def _job_id(request: Request) -> str:
    """The id in the path. Raises JobNotFoundError."""
    job_id: str = request.path_params["job_id"]
    if not is_id(job_id):
        raise _not_found(request)
    return job_id


def _found(job: Job | None, request: Request) -> Job:
    if job is None:
        raise _not_found(request)
    return job


def _not_found(request: Request) -> JobNotFoundError:
    return JobNotFoundError(f"There is no prediction {request.path_params['job_id'][:64]!r}.", "id")
