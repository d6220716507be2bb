"""Replicate's dialect: jobs that are handed in, asked after, followed and canceled."""

import asyncio
import hashlib
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.acceptance import Acceptance
from serve.calls.pipeline import Pipeline
from serve.capacity.admission import Estimator
from serve.capacity.rate_limits import RateLimits
from serve.config.app import AppConfig
from serve.errors import (
    InvalidInputError,
    InvalidRequestError,
    JobNotFoundError,
    JobStoreUnavailableError,
)
from serve.http.authentication import client_of
from serve.http.body import bounded_body
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
from serve.jobs.job import IdempotencyKey, Job, JobState, NewJob, Webhook
from serve.jobs.store import JobStore
from serve.jobs.webhooks import check_webhook_url

logger = logging.getLogger("ray.serve")

PAGE_SIZE = 100
_JOB_ID_BYTES = 13
_JOB_ID = re.compile(f"[0-9a-f]{{{2 * _JOB_ID_BYTES}}}")
_EVENT_ID = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")
_UNKNOWN = {"queue_position": None, "eta_s": None}
_LOOK_INTERVAL_S = 0.1  # how soon a waiting client hears of news: a look costs a millisecond


class PredictionsRoutes:
    """The routes' handlers and what they work with."""

    def __init__(
        self,
        config: AppConfig,
        acceptance: Acceptance,
        store: JobStore,
        pipeline: Pipeline,
        estimator: Estimator,
        rate_limits: RateLimits,
        look_for_canceled: Callable[[], None],
    ) -> None:
        """look_for_canceled: called when a job was canceled, for runners to stop it"""
        self._config = config
        self._acceptance = acceptance
        self._store = store
        self._pipeline = pipeline
        self._estimator = estimator
        self._rate_limits = rate_limits
        self._look_for_canceled = look_for_canceled

    async def create(self, request: Request) -> Response:
        """201 once the job is on disk; with `Prefer: wait` when it is finished or that time is over."""
        came_at = time.monotonic()
        raw = await bounded_body(request)
        try:
            wait = wait_s(request.headers.get("prefer"))
            new = await asyncio.to_thread(self._accept, raw, request)
        except InvalidRequestError as error:
            raise InvalidInputError(error.detail, error.param) from error
        cost = self._pipeline.known_cost_model
        with self._rate_limits.charged(client_of(request), new.request, cost) as give_back:
            job = await self._store.create(new)
            if job.id != new.request.request_id:
                give_back()  # it comes again by its idempotency key, and was charged when it was made
        location = f"{job.base_url}{PREDICTIONS_PATH}/{job.id}"
        # Its place in the queue would take another look into the database; whoever asks after it is told.
        shown = describe(job) | _UNKNOWN
        if wait is not None:
            with suppress(JobStoreUnavailableError):  # it is on disk, and whoever made it must be told
                shown = await self._waited_for(job, came_at + wait)
        return JSONResponse(shown, 201, {"location": location})

    async def get(self, request: Request) -> Response:
        return JSONResponse(await self._described(await self._job(request)))

    async def page(self, request: Request) -> Response:
        """The client's own, newest first. `cursor` is what `next` or `previous` of another page has."""
        page = await self._store.page(PAGE_SIZE, request.query_params.get("cursor"), client_of(request).name)
        url = f"{self._base_url(request)}{PREDICTIONS_PATH}?cursor="
        return JSONResponse(
            {
                "next": page.next and url + page.next,
                "previous": page.previous and url + page.previous,
                "results": [describe(job) for job in page.jobs],
            }
        )

    async def cancel(self, request: Request) -> Response:
        """What is finished stays as it is."""
        job = await self._store.cancel(_job_id(request), client_of(request).name)
        self._look_for_canceled()
        return JSONResponse(await self._described(_found(job, request)))

    async def stream(self, request: Request) -> Response:
        """Server-sent events; `Last-Event-ID` goes on where another connection ended."""
        job = await self._job(request)
        seen = _Seen.parse(request.headers.get("last-event-id", ""))
        return EventSourceResponse(self._events(job, seen), ping=15, sep="\n")

    async def _events(self, job: Job, seen: "_Seen") -> AsyncGenerator[ServerSentEvent, None]:
        while True:
            urls = output_urls(job)
            for url in urls[seen.num_outputs :]:
                seen = _Seen(seen.num_outputs + 1, seen.steps)
                yield ServerSentEvent(url, event="output", id=str(seen))
            if job.steps_done > seen.steps:
                seen = _Seen(seen.num_outputs, job.steps_done)
                yield ServerSentEvent(logs(job).strip(), event="logs", id=str(seen))
            if job.state.is_final:
                break
            await asyncio.sleep(_LOOK_INTERVAL_S)
            job = await self._store.get(job.id, job.owner) or job
        if job.state is JobState.FAILED:
            yield ServerSentEvent(json.dumps({"detail": job.error}), event="error", id=str(seen))
        reason = {JobState.CANCELED: {"reason": "canceled"}, JobState.FAILED: {"reason": "error"}}
        yield ServerSentEvent(json.dumps(reason.get(job.state, {})), event="done", id=str(seen))

    def _accept(self, raw: bytes, request: Request) -> NewJob:
        """In a thread: a large body takes a while, and so does a sampler that is met for the first time."""
        body = read_body(raw)
        if "name" in request.path_params:
            self._check_served("{owner}/{name}", "{owner}/{name}".format(**request.path_params))
        elif body.version is not None:
            self._check_served("version", body.version)
        else:
            raise InvalidRequestError(
                f"version: is required; it names the model, here {self._config.model.id!r}.", "version"
            )
        key = idempotency_key(request.headers.get("idempotency-key"))
        try:
            accepted = self._acceptance.accept(wanted_of(body.input), secrets.token_hex(_JOB_ID_BYTES))
        except InvalidRequestError as error:
            raise InvalidRequestError(f"input.{error.detail}", f"input.{error.param}") from error
        return NewJob(
            request=accepted,
            owner=client_of(request).name,
            model=self._config.model.shown_id,
            input=given_input(body),
            base_url=self._base_url(request),
            webhook=self._webhook(body),
            lifetime_s=lifetime_s(request.headers.get("cancel-after")),
            idempotency_key=None if key is None else IdempotencyKey(key, _fingerprint(request, raw)),
        )

    def _webhook(self, body: PredictionBody) -> Webhook | None:
        if body.webhook is None:
            return None
        check_webhook_url(body.webhook, self._config.jobs.allow_private_webhooks)
        return Webhook(body.webhook, body.webhook_events)

    def _check_served(self, field: str, name: str) -> None:
        """Clients say `owner/name`, `owner/name:version` or `version`; one model is served here."""
        if name.partition(":")[0].rpartition("/")[2] != self._config.model.id:
            self._acceptance.check_model(name, field)

    def _base_url(self, request: Request) -> str:
        return (self._config.jobs.public_url or str(request.base_url)).rstrip("/")

    async def _job(self, request: Request) -> Job:
        return _found(await self._store.get(_job_id(request), client_of(request).name), request)

    async def _waited_for(self, job: Job, until: float) -> dict[str, Any]:
        """As it is when it is finished, or at that time. until: on the monotonic clock"""
        while not job.state.is_final and (left_s := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, _LOOK_INTERVAL_S))
            job = await self._store.get(job.id, job.owner) or job
        # As at Replicate: its client takes whatever is not "starting" here for the end.
        unfinished = {} if job.state.is_final else {"status": JobState.STARTING.value}
        return await self._described(job) | unfinished

    async def _described(self, job: Job) -> dict[str, Any]:
        """With what others than the job know: its place in the queue, and how long it will take."""
        if job.state.is_final:
            return describe(job) | _UNKNOWN
        position = await self._store.queue_position(job)
        return describe(job) | {"queue_position": position, "eta_s": self._eta_s(job, position or 0)}

    def _eta_s(self, job: Job, position: int) -> float | None:
        """Roughly: what the rest of it takes alone, and as long again for each round of jobs before it."""
        cost = self._pipeline.known_cost_model
        if cost is None:
            return None
        alone_s = self._estimator.latency_s(job.request, cost)
        rounds = position / (self._config.images_per_runner() * self._config.jobs.num_runners)
        return round(alone_s * (1 - job.fraction_done + rounds), 2)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a stream's reader has: so many images, and the progress of so many steps. The id of its events."""

    num_outputs: int = 0
    steps: int = 0

    def __str__(self) -> str:
        return f"{self.num_outputs}-{self.steps}"

    @classmethod
    def parse(cls, event_id: str) -> "_Seen":
        """From the start where the id is none of ours."""
        if (match := _EVENT_ID.fullmatch(event_id)) is None:
            return cls()
        return cls(*map(int, match.groups()))


def _fingerprint(request: Request, raw: bytes) -> str:
    """The path says which model is meant."""
    return hashlib.sha256(request.url.path.encode() + b"\n" + raw).hexdigest()


def _job_id(request: Request) -> str:
    """Databases refuse some of what no id has. Raises JobNotFoundError."""
    job_id: str = request.path_params["job_id"]
    if not _JOB_ID.fullmatch(job_id):
        raise _not_found(request)
    return job_id


def _found(job: Job | None, request: Request) -> Job:
    if job is None:
        raise _not_found(request)
    return job


def _not_found(request: Request) -> JobNotFoundError:
    return JobNotFoundError(f"There is no prediction {request.path_params['job_id'][:64]!r}.", "id")
