"""Runs jobs: claims them under leases, drives the pipeline, records what comes of it, and sends webhooks.

Whatever is written carries the fencing token of its claim, so that a runner that was taken for dead and comes
back can do no harm. Nothing here is remembered that is not in the job store: a runner may die at any time.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from safetensors import SafetensorError

from deployments.engine.messages import Checkpoint
from serve.errors import (
    JobStoreUnavailableError,
    MidstepError,
    NotFiniteError,
    ObjectNotFoundError,
    ObjectStoreUnavailableError,
    PoisonousRequestError,
    StorageFullError,
)
from serve.generation import GenerationEvent, GenerationRequest, ImageDone, ImageProgress, Resume
from serve.jobs.checkpoints import checkpoint_key, from_bytes, to_bytes
from serve.jobs.job import Job
from serve.jobs.metrics import JobMetrics
from serve.jobs.objects import ObjectStore, image_key
from serve.jobs.outbox import Delivery
from serve.jobs.records import Claim
from serve.jobs.store import JobStore
from serve.jobs.webhooks import Delivered, GaveUp, RetryIn, WebhookSender

logger = logging.getLogger("ray.serve")

Result = TypeVar("Result")
Generate = Callable[[GenerationRequest, Resume], AsyncGenerator[GenerationEvent, None]]

# What passes by itself: the job waits, or is taken over when its lease has run out.
_AWAY = (JobStoreUnavailableError, ObjectStoreUnavailableError, StorageFullError)
_PROGRESS_INTERVAL_S = 0.5
_LOOK_INTERVAL_S = 0.1  # how long a canceled job may go on if nobody tells: a look costs a millisecond
_AWAY_INTERVAL_S = 2.0
_MAX_DELIVERIES = 32
_MAX_DELIVERIES_TO_HOST = 4
_DELIVERY_LEASE_S = 60.0  # longer than a receiver is given to answer
_EXPIRED_AT_ONCE = 100
_WAITING_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """max_images: under way at once; lease_s: after which a runner that says nothing is taken for dead;
    poll_interval_s: between looks for new jobs; retention_s: how long what is finished is kept, and
    forget_after_s that it is known at all."""

    max_images: int
    lease_s: float
    poll_interval_s: float
    retention_s: float
    forget_after_s: float


@dataclass(eq=False, slots=True)
class _Running:
    """is_begun: the store knows that this attempt has come to something"""

    job: Job
    task: "asyncio.Task[None]"
    is_begun: bool = False


class JobRunner:
    """One per process; any number of processes."""

    def __init__(
        self,
        store: JobStore,
        objects: ObjectStore,
        webhooks: WebhookSender,
        generate: Generate,
        settings: RunnerSettings,
    ) -> None:
        self._store = store
        self._objects = objects
        self._webhooks = webhooks
        self._generate = generate
        self._settings = settings
        self._running: dict[str, _Running] = {}
        self._steps_done: dict[Claim, int] = {}  # what is to be recorded of them
        self._deliveries: dict[asyncio.Task[None], str] = {}  # and to which host
        self._metrics = JobMetrics()

    async def run(self) -> None:
        """Until it is cancelled; then it gives back what it has not finished."""
        poll_s = self._settings.poll_interval_s
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(_every(poll_s, self._claim))
                loops.create_task(_every(min(1.0, self._settings.lease_s / 3), self._renew))
                loops.create_task(_every(_LOOK_INTERVAL_S, self.leave_lost))
                loops.create_task(_every(_PROGRESS_INTERVAL_S, self._record_progress))
                loops.create_task(_every(poll_s, self._send_webhooks))
                loops.create_task(_every(1.0, self._sweep))
                loops.create_task(_every(_WAITING_INTERVAL_S, self._count_waiting))
                loops.create_task(_every(60.0, self._expire))
        finally:
            await self._give_back()

    async def _claim(self) -> None:
        """As many as there is room for; one job may go over it, or the largest would never have a turn."""
        under_way = sum(running.job.request.num_images for running in self._running.values())
        while under_way < self._settings.max_images:
            jobs = await self._store.claim(1, self._settings.lease_s, list(self._running))
            if not jobs:
                return
            for job in jobs:
                self._running[job.id] = _Running(job, asyncio.create_task(self._work(job)))
                under_way += job.request.num_images

    async def _renew(self) -> None:
        await self._store.renew(
            [Claim.of(running.job) for running in self._running.values()], self._settings.lease_s
        )

    async def _sweep(self) -> None:
        await self._store.sweep(list(self._running))

    async def leave_lost(self) -> None:
        """Stops work on jobs that are no longer ours: canceled by their clients, or taken for lost."""
        running = list(self._running.values())
        held = await self._store.held([Claim.of(one.job) for one in running])
        for one in running:
            # Once: a second time would cut off what it does to leave.
            if one.job.id not in held and not one.task.cancelling():
                one.task.cancel()

    async def _work(self, job: Job) -> None:
        claim = Claim.of(job)
        try:
            await self._make_images(job, claim)
        except (PoisonousRequestError, NotFiniteError) as error:
            await _until_it_is_done(partial(self._store.fail, claim, error.detail))
        except MidstepError as error:
            await _until_it_is_done(partial(self._store.retry, claim, error.detail))
        except Exception:  # the boundary of a job: the others go on
            logger.exception("job %s failed in attempt %d", job.id, job.attempt)
            reason = "A fault of ours; the log has it under the job's id."
            await _until_it_is_done(partial(self._store.retry, claim, reason))
        finally:
            del self._running[job.id]

    async def _make_images(self, job: Job, claim: Claim) -> None:
        steps_done = dict.fromkeys(job.output, job.request.num_inference_steps)
        resume = await self._resume(job)
        steps_done |= {index: checkpoint.step for index, checkpoint in resume.checkpoints.items()}
        num_left = job.request.num_images - len(job.output)
        unrecorded: dict[int, str] = {}
        async with aclosing(self._generate(job.request, resume)) as events:
            async for event in events:
                match event:
                    case ImageProgress(index, checkpoint):
                        steps_done[index] = checkpoint.step
                        await self._keep_checkpoint(claim, index, checkpoint)
                        self._steps_done[claim] = sum(steps_done.values())
                    case ImageDone(index, _, image):
                        steps_done[index] = job.request.num_inference_steps
                        key = image_key(job.id, index, image.media_type)
                        data, media_type = image.data, image.media_type
                        await self._begin(claim)
                        await _until_it_is_done(partial(self._objects.put, key, data, media_type))
                        num_left -= 1
                        if num_left:
                            total = sum(steps_done.values())
                            record = partial(self._store.record_image, claim, index, key, total)
                            await _until_it_is_done(record)
                        else:
                            unrecorded = {index: key}  # in one transaction with the job's success
        await _until_it_is_done(partial(self._store.succeed, claim, unrecorded))
        await self._objects.delete_folder(f"checkpoints/{job.id}")

    async def _begin(self, claim: Claim) -> None:
        """Before an image is kept, so that a death of which keeping it is the cause counts."""
        running = self._running[claim.job_id]
        if not running.is_begun:
            await _until_it_is_done(partial(self._store.begin, claim))
            running.is_begun = True

    async def _resume(self, job: Job) -> Resume:
        """What another runner had come to."""
        if job.attempt == 1:
            return Resume()
        checkpoints = {}
        for index in set(range(job.request.num_images)) - set(job.output):
            try:
                key = checkpoint_key(job.id, index)
                checkpoints[index] = from_bytes(await _until_it_is_done(partial(self._objects.read, key)))
            except ObjectNotFoundError:
                continue
            except SafetensorError:
                logger.warning("job %s: the checkpoint of image %d cannot be read", job.id, index)
        return Resume(frozenset(job.output), checkpoints)

    async def _keep_checkpoint(self, claim: Claim, index: int, checkpoint: Checkpoint) -> None:
        """Worth having, and no reason to wait: where it cannot be kept the image goes on without."""
        try:
            await self._objects.put(checkpoint_key(claim.job_id, index), to_bytes(checkpoint))
        except _AWAY as error:
            logger.warning("job %s: a checkpoint is not kept, since %s", claim.job_id, error.detail)

    async def _record_progress(self) -> None:
        """All jobs' in one transaction: SQLite has one writer, and clients wait to hand in theirs."""
        steps_done, self._steps_done = self._steps_done, {}
        for job_id in await self._store.record_progress(steps_done):
            if running := self._running.get(job_id):
                running.is_begun = True

    async def _send_webhooks(self) -> None:
        """Those that are due, at once and without waiting for them: a slow receiver holds up nobody."""
        free = _MAX_DELIVERIES - len(self._deliveries)
        if not free:
            return
        hosts = Counter(self._deliveries.values())
        busy = [host for host, number in hosts.items() if number >= _MAX_DELIVERIES_TO_HOST]
        for delivery in await self._store.outbox.due_deliveries(
            free, _DELIVERY_LEASE_S, _MAX_DELIVERIES_TO_HOST, busy
        ):
            task = asyncio.create_task(self._send_webhook(delivery))
            self._deliveries[task] = delivery.host
            task.add_done_callback(self._deliveries.pop)

    async def _send_webhook(self, delivery: Delivery) -> None:
        try:
            outcome = await self._webhooks.send(delivery.id, delivery.url, delivery.payload, delivery.attempt)
            self._metrics.count_delivery(outcome)
            match outcome:
                case Delivered():
                    await self._store.outbox.delivered(delivery)
                case RetryIn(seconds, reason):
                    logger.info("webhook %s of job %s: %s", delivery.id, delivery.job_id, reason)
                    await self._store.outbox.postpone(delivery, seconds)
                case GaveUp(reason):
                    logger.warning("webhook %s of job %s given up: %s", delivery.id, delivery.job_id, reason)
                    await self._store.outbox.give_up(delivery, reason)
        except _AWAY as error:
            logger.warning("webhook %s will be sent again, since %s", delivery.id, error.detail)
        except Exception:  # the boundary of a delivery: its lease runs out, and it is tried again
            logger.exception("webhook %s of job %s failed", delivery.id, delivery.job_id)

    async def _count_waiting(self) -> None:
        self._metrics.set_waiting(await self._store.waiting())

    async def _expire(self) -> None:
        """Deletes what was kept for long enough: first the images, then what names them, at last the rows."""
        while expired := await self._store.expired(self._settings.retention_s, _EXPIRED_AT_ONCE):
            for job in expired:
                for folder in (f"images/{job.id}", f"checkpoints/{job.id}"):
                    await self._objects.delete_folder(folder)
            await self._store.remove_data(expired)
        while await self._store.forget(self._settings.forget_after_s, _EXPIRED_AT_ONCE):
            pass

    async def _give_back(self) -> None:
        tasks = [running.task for running in self._running.values()]
        jobs = [running.job for running in self._running.values()]
        for task in [*tasks, *self._deliveries]:
            task.cancel()
        await asyncio.gather(*tasks, *self._deliveries, return_exceptions=True)
        for job in jobs:
            try:
                await self._store.give_back(Claim.of(job))
            except _AWAY as error:
                logger.warning("job %s is taken over when its lease is over, since %s", job.id, error.detail)


async def _until_it_is_done(action: Callable[[], Awaitable[Result]]) -> Result:
    """No job fails and nothing is made twice because a disk is full or a database away: it waits here."""
    while True:
        try:
            return await action()
        except _AWAY as error:
            logger.warning("jobs: one waits, since %s", error.detail)
            await asyncio.sleep(_AWAY_INTERVAL_S)


async def _every(interval_s: float, action: Callable[[], Awaitable[object]]) -> None:
    """For ever: what is away comes back, and a fault of ours must not end the others' work."""
    while True:
        try:
            await action()
        except _AWAY as error:
            logger.warning("jobs: %s", error.detail)
        except Exception:  # the boundary of a loop
            logger.exception("jobs: a round failed")
        await asyncio.sleep(interval_s)
