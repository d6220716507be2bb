"""The front desk: the only way in for all dialects.

A dialect parses a body into a `Wanted`, submits it here, and formats the result: a `Generation` that runs
now, or a job.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial

from deployments.engine.messages import Picture
from serve.adapters import NO_ADAPTERS
from serve.calls.pipeline import Pipeline
from serve.capacity.admission import Admission
from serve.capacity.rate_limits import RateLimits
from serve.clients import Client
from serve.errors import IdempotencyKeyReusedError, MidstepError
from serve.generation import GenerationEvent, GenerationRequest
from serve.http.adapter_sources import AdapterSources
from serve.jobs.inputs import JobInputs
from serve.jobs.job import Job, NewJob
from serve.jobs.store import JobStore
from serve.served_model import Accepted, ServedModel
from serve.served_models import ServedModels
from serve.wanted import Wanted

_DECODED_AT_ONCE = 2  # pictures; the largest take more than half a gigabyte while they are decoded


class Generation:
    """An admitted request and its events, which can be read once. Closing it cancels its work and gives its
    places back."""

    def __init__(
        self, request: GenerationRequest, events: AsyncGenerator[GenerationEvent, None], held: ExitStack
    ) -> None:
        self.request = request
        self._events = events
        self._held = held

    def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        return self._events

    async def aclose(self) -> None:
        with self._held:
            await self._events.aclose()


class FrontDesk:
    """Accepts, charges and admits requests, and checks their deadlines.

    started_at: since when they are served, in seconds since the epoch
    """

    def __init__(
        self,
        models: ServedModels,
        pipeline: Pipeline,
        admission: Admission,
        rate_limits: RateLimits,
        store: JobStore,
        inputs: JobInputs,
        adapter_sources: AdapterSources,
    ) -> None:
        self.models = models
        self.started_at = time.time()
        self._pipeline = pipeline
        self._admission = admission
        self._rate_limits = rate_limits
        self._store = store
        self._inputs = inputs
        self._adapter_sources = adapter_sources
        self._decoding = ThreadPoolExecutor(_DECODED_AT_ONCE, "decoding")

    def model(self, name: str | None, field: str) -> ServedModel:
        """As ServedModels.named."""
        return self.models.named(name, field)

    def check(self, wanted: Wanted) -> None:
        """Refuses what can be refused before a picture is fetched and decoded. Raises a MidstepError."""
        self.model(wanted.model, wanted.name("model")).check(wanted)

    def check_room(self, wanted: Wanted) -> None:
        """The same, and if the queue is full. Raises a MidstepError."""
        self.check(wanted)
        self._admission.check_room(wanted.num_images or 1)

    async def submit(self, wanted: Wanted, client: Client, request_id: str) -> Generation:
        """Admits a request that is served now. The caller must close the returned generation.

        Raises a MidstepError for a refusal, before any work is done.
        """
        model = self.model(wanted.model, wanted.name("model"))
        if wanted.loras:  # no file is fetched for a request that has no place
            self.check_room(wanted)
        accepted = await self._accepted(model, wanted, client, request_id)
        request = accepted.request
        with ExitStack() as held:
            with self._rate_limits.charged(client, request):
                held.enter_context(self._admission.admitted(request))
                if request.deadline is not None:
                    cost = await self._pipeline.costs.of(request.ref, request.deadline)
                    latency_s = partial(model.estimator.latency_s, request, cost)
                    self._admission.check_deadline(request, latency_s)
            events = self._pipeline.generate(request, accepted.picture)
            return Generation(request, events, held.pop_all())

    async def submit_job(
        self, wanted: Wanted, client: Client, job_id: str, new_job: Callable[[GenerationRequest], NewJob]
    ) -> Job:
        """Creates a job on disk, or returns the earlier one with the same idempotency key.

        new_job: makes the job's record from the accepted request
        Raises a MidstepError for a refusal.
        """
        model = self.model(wanted.model, wanted.name("model"))
        accepted = await self._accepted(model, wanted, client, job_id)
        with self._rate_limits.charged(client, accepted.request) as give_back:
            job = await self._created(new_job(accepted.request), accepted.picture)
            if job.id != job_id:
                give_back()  # it was charged when it was made
        return job

    async def _created(self, new: NewJob, picture: Picture | None) -> Job:
        """The job, whose picture is on disk before it is."""
        if picture is None:
            return await self._store.create(new)
        job_id = new.request.request_id
        await self._inputs.keep(job_id, picture)
        try:
            job = await self._store.create(new)
        except IdempotencyKeyReusedError:
            await self._unneeded(job_id)
            raise
        # After any other error the job may be on disk all the same.
        if job.id != job_id:
            await self._unneeded(job_id)
        return job

    async def _unneeded(self, job_id: str) -> None:
        with suppress(MidstepError):  # a runner deletes what stays
            await self._inputs.delete(job_id)

    async def _accepted(
        self, model: ServedModel, wanted: Wanted, client: Client, request_id: str
    ) -> Accepted:
        """In a thread, because a sampler and an adapter take a while at their first use, and a picture always
        does."""
        model.check(wanted)  # before anything is fetched
        if wanted.loras:
            self._rate_limits.check(client)
            wanted = await self._adapter_sources.with_files(wanted, client.name)
        adapters = NO_ADAPTERS
        if model.named_adapters(wanted):
            adapters = await model.adapters.on_thread(model.resolve, wanted)
        if wanted.image is None:
            return await asyncio.to_thread(model.accept, wanted, request_id, adapters)
        # In threads of their own: a thread goes on when its client has left.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoding, model.accept, wanted, request_id, adapters)
