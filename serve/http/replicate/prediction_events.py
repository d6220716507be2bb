"""`GET /v1/predictions/{id}/events`: a prediction as it changes, with previews of its images."""

import base64
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.errors import MidstepError
from serve.http.event_stream import EventStream
from serve.http.operations import described
from serve.http.replicate import operations
from serve.http.replicate.answers import Prediction, PredictionPreview
from serve.http.replicate.prediction import PREDICTIONS_PATH
from serve.http.replicate.predictions import PredictionsRoutes
from serve.jobs.job import Job, JobState
from serve.jobs.objects import ObjectStore, media_type_of
from serve.jobs.store import JobStore

logger = logging.getLogger("ray.serve")

# News of other jobs wakes a follower up to twenty times a second; its own forecast is not read as often.
_FORECAST_INTERVAL_S = 0.25


class PredictionEventsRoute:
    """The handler of the route, for a page that shows predictions. Replicate's own stream is another one."""

    def __init__(self, predictions: PredictionsRoutes, store: JobStore, objects: ObjectStore) -> None:
        self._predictions = predictions
        self._store = store
        self._objects = objects

    @property
    def routes(self) -> list[Route]:
        return [Route(PREDICTIONS_PATH + "/{job_id}/events", self._get)]

    @described(operations.EVENTS)
    async def _get(self, request: Request) -> Response:
        return EventStream(self._events(await self._predictions.job(request)))

    async def _events(self, job: Job) -> AsyncGenerator[ServerSentEvent, None]:
        sent: dict[int, int] = {}  # the latest preview of each image
        try:
            async with aclosing(self._shown(job)) as states:
                async for now, prediction in states:
                    if prediction is not None:
                        yield ServerSentEvent(json.dumps(prediction), event="prediction")
                    async with aclosing(self._new_previews(now, sent)) as previews:
                        async for preview in previews:
                            yield ServerSentEvent(json.dumps(preview), event="preview")
        except MidstepError as error:
            # The status is already sent. Without a finished prediction at its end, clients connect again.
            logger.warning("the events of job %s end early: %s", job.id, error.detail)

    async def _shown(self, job: Job) -> AsyncGenerator[tuple[Job, Prediction | None], None]:
        """The job again and again until it is over, each time with its prediction if that has changed."""
        before: Job | None = None
        shown: Prediction | None = None
        looked_at = 0.0  # on the monotonic clock
        async with aclosing(self._store.follow(job)) as states:
            async for now in states:
                is_old = time.monotonic() - looked_at >= _FORECAST_INTERVAL_S
                if now == before and not (now.state is JobState.STARTING and is_old):
                    continue
                before, looked_at = now, time.monotonic()
                prediction = await self._predictions.with_forecast(now)
                yield now, None if prediction == shown else prediction
                shown = prediction

    async def _new_previews(self, job: Job, sent: dict[int, int]) -> AsyncGenerator[PredictionPreview, None]:
        """The previews of a job that were not sent yet. Only the newest of each image: it replaces others."""
        for image_index, preview in sorted(job.previews.items()):
            if preview.index <= sent.get(image_index, -1):
                continue
            sent[image_index] = preview.index
            try:
                data = await self._objects.read(preview.key)
            except MidstepError:  # it is not needed: the next one may be there
                continue
            yield {
                "image_index": image_index,
                "preview_index": preview.index,
                "step": preview.step,
                "media_type": media_type_of(preview.key),
                "b64_json": base64.b64encode(data).decode("ascii"),
            }
