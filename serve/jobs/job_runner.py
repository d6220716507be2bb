"""Runs jobs: claims them under leases, drives the pipeline, records the results, and sends webhooks.

Every write carries the fencing token of its claim, so a runner that was taken for dead and comes back can do
no harm. All state that matters is in the job store, so a runner may die at any time.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial

from deployments.engine.messages import Checkpoint, Picture
from serve.errors import GenerationFailedError, MidstepError, ObjectNotFoundError
from serve.generation import (
    GenerationEvent,
    GenerationRequest,
    ImageDone,
    ImagePreview,
    ImageProgress,
    Resume,
)
from serve.jobs.checkpoints import UnusableCheckpointError, checkpoint_key, from_bytes, to_bytes
from serve.jobs.cleaning import Cleaning
from serve.jobs.deliveries import Deliveries
from serve.jobs.inputs import JobInputs
from serve.jobs.job import Job
from serve.jobs.metrics import JobMetrics
from serve.jobs.objects import ANSWERS_FOLDER, ObjectStore, image_key
from serve.jobs.previews import Previews
from serve.jobs.records import Claim, Progress
from serve.jobs.rounds import AWAY, attempt, every, on_news, until_it_is_done
from serve.jobs.store import JobStore
from serve.jobs.uploads import Uploads
from serve.jobs.webhooks import WebhookSender

logger = logging.getLogger("ray.serve")

Generate = Callable[[GenerationRequest, Picture | None, Resume], AsyncGenerator[GenerationEvent, None]]

_PROGRESS_INTERVAL_S = 0.5
_SWEEP_INTERVAL_S = 3.0  # only used if looks are further apart
_WAITING_INTERVAL_S = 5.0
_EXPIRY_INTERVAL_S = 60.0
_DELETION_INTERVAL_S = 15.0  # clients are promised a minute


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """max_images: images at once; lease_s: a runner that is silent for this long is taken for dead
    poll_interval_s: between looks for changes without news
    retention_s, forget_after_s: how long a finished job's data and its row are kept
    answer_retention_s: how long images of plain answers are kept, which have no jobs
    fingerprint: of a request's model and the engine, stored in checkpoints"""

    max_images: int
    lease_s: float
    poll_interval_s: float
    retention_s: float
    forget_after_s: float
    answer_retention_s: float
    fingerprint: Callable[[GenerationRequest], str]


@dataclass(eq=False, slots=True)
class _Running:
    """is_begun: the store knows that this attempt has progressed"""

    job: Job
    task: "asyncio.Task[None]"
    is_begun: bool = False

    def leave(self) -> None:
        """Stops the work, but only once: a second cancellation would interrupt the clean-up."""
        if not self.task.cancelling():
            self.task.cancel()


class JobRunner:
    """Runs the jobs of one process. Any number of processes may do so."""

    def __init__(
        self,
        store: JobStore,
        objects: ObjectStore,
        webhooks: WebhookSender,
        generate: Generate,
        settings: RunnerSettings,
    ) -> None:
        self._store = store
        self._queue = store.queue
        self._objects = objects
        self._uploads = Uploads(store.database, objects)
        self._inputs = JobInputs(store.database, objects)
        self._cleaning = Cleaning(store, objects, self._inputs, settings.retention_s, settings.forget_after_s)
        self._generate = generate
        self._settings = settings
        self._running: dict[str, _Running] = {}
        self._progress: dict[Claim, Progress] = {}  # progress that is not recorded yet
        self._metrics = JobMetrics(store.models)
        self._looked_at = 0.0  # time of the last look, on the monotonic clock
        self._has_room = asyncio.Event()  # room for another job or webhook
        self._deliveries = Deliveries(store.outbox, webhooks, self._metrics, self._has_room)
        self._may_have_lost = asyncio.Event()

    async def run(self) -> None:
        """Runs until cancelled, and then gives back the unfinished jobs."""
        news, poll_s = self._store.news, self._settings.poll_interval_s
        renewal_s = min(1.0, self._settings.lease_s / 3)
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(on_news(news, self._has_room, poll_s, self._look))
                loops.create_task(on_news(news, self._may_have_lost, renewal_s, self._leave_lost))
                loops.create_task(every(renewal_s, self._renew))
                loops.create_task(every(_PROGRESS_INTERVAL_S, self._record_progress))
                loops.create_task(every(_SWEEP_INTERVAL_S, self._sweep))
                loops.create_task(every(_WAITING_INTERVAL_S, self._count_waiting))
                loops.create_task(every(_DELETION_INTERVAL_S, self._cleaning.remove_deleted))
                loops.create_task(every(_EXPIRY_INTERVAL_S, self._cleaning.remove_old))
                loops.create_task(every(_EXPIRY_INTERVAL_S, self._expire_answers))
                loops.create_task(every(_EXPIRY_INTERVAL_S, self._uploads.remove_expired))
                loops.create_task(every(_EXPIRY_INTERVAL_S, self._inputs.remove_abandoned))
        finally:
            await self._give_back()

    async def _look(self) -> None:
        """Reads whether there is anything to do, which there mostly is not."""
        self._looked_at = time.monotonic()
        found = await self._store.look(list(self._running), self._deliveries.busy_hosts)
        if found.needs_sweep:
            await attempt(self._sweep_now)
        if found.may_claim:
            await attempt(self._claim)
        if found.is_due:
            await attempt(self._deliveries.send_due)

    async def _sweep(self) -> None:
        """Ends jobs in time however seldom looks come, because deadlines and deaths make no news."""
        if time.monotonic() - self._looked_at < _SWEEP_INTERVAL_S:
            return
        if (await self._store.look(list(self._running))).needs_sweep:
            await self._sweep_now()

    async def _sweep_now(self) -> None:
        await self._store.housekeeping.sweep(list(self._running))

    async def _claim(self) -> None:
        """Claims as many jobs as there is room for; the last one may exceed it."""
        under_way = sum(running.job.request.num_images for running in self._running.values())
        room, ours = self._settings.max_images - under_way, list(self._running)
        if room <= 0:
            return
        claiming = asyncio.create_task(self._queue.claim(room, self._settings.lease_s, ours))
        try:
            jobs = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with suppress(*AWAY):  # then nothing was claimed
                await self._give_back_claimed(await claiming)  # it went on; nobody else knows its jobs
            raise
        for job in jobs:
            self._running[job.id] = _Running(job, asyncio.create_task(self._work(job)))
        self._has_room.set()  # another runner may have locked jobs that it did not take

    async def _renew(self) -> None:
        claims = [Claim.of(running.job) for running in self._running.values()]
        await self._queue.renew(claims, self._settings.lease_s)

    async def _leave_lost(self) -> None:
        """Stops work on jobs that are no longer ours: canceled by their clients, or taken over."""
        running = list(self._running.values())
        held = await self._queue.held([Claim.of(one.job) for one in running])
        for one in running:
            if one.job.id not in held:
                one.leave()

    async def _work(self, job: Job) -> None:
        claim = Claim.of(job)
        try:
            await self._make_images(job, claim)
        except MidstepError as error:
            end = self._queue.fail if error.is_final else self._queue.retry
            await until_it_is_done(partial(end, claim, error.detail))
        except Exception:  # the boundary of a job: the others go on
            logger.exception("job %s failed in attempt %d", job.id, job.attempt)
            reason = "An internal error; the log has details under the job's id."
            await until_it_is_done(partial(self._queue.retry, claim, reason))
        finally:
            try:
                await self._store.database.finish(attempt(partial(self._cleaning.after_work, job)))
            finally:
                del self._running[job.id]
                self._has_room.set()

    async def _make_images(self, job: Job, claim: Claim) -> None:
        steps_done = dict.fromkeys(job.output, job.request.steps_per_image)
        resume = await self._resume(job)
        steps_done |= {
            index: job.request.steps_before(checkpoint.in_pass) + checkpoint.step
            for index, checkpoint in resume.checkpoints.items()
        }
        picture, previews = await self._picture(job), Previews(job, self._objects)
        num_left = job.request.num_images - len(job.output)
        unrecorded: dict[int, str] = {}
        async with aclosing(self._generate(job.request, picture, resume)) as events:
            async for event in events:
                match event:
                    case ImageProgress(index, checkpoint, steps):
                        steps_done[index] = steps
                        await self._keep_checkpoint(job, index, checkpoint)
                        self._progress[claim] = Progress(sum(steps_done.values()), previews.latest)
                    case ImagePreview(index, _, step):
                        steps_done[index] = max(steps_done.get(index, 0), step)
                        await previews.keep(event)
                        self._progress[claim] = Progress(sum(steps_done.values()), previews.latest)
                    case ImageDone(index, _, image):
                        steps_done[index] = job.request.steps_per_image
                        key = image_key(job.id, index, image.media_type)
                        data, media_type = image.data, image.media_type
                        await self._begin(claim)
                        await until_it_is_done(partial(self._objects.put, key, data, media_type))
                        num_left -= 1
                        if num_left:
                            total = sum(steps_done.values())
                            record = partial(self._queue.record_image, claim, index, key, total)
                            await until_it_is_done(record)
                        else:
                            unrecorded = {index: key}  # in one transaction with the job's success
        await until_it_is_done(partial(self._queue.succeed, claim, unrecorded))

    async def _picture(self, job: Job) -> Picture | None:
        """What the job starts from. Without it the job fails, as it then cannot be made."""
        if job.request.start is None:
            return None
        try:
            return await until_it_is_done(partial(self._inputs.read, job.id, job.request.start))
        except ObjectNotFoundError as error:
            raise GenerationFailedError("The picture to start from is no longer there.") from error

    async def _begin(self, claim: Claim) -> None:
        """Marks the job as begun before an image is stored, so that a death caused by storing it counts."""
        running = self._running[claim.job_id]
        if not running.is_begun:
            await until_it_is_done(partial(self._queue.begin, claim))
            running.is_begun = True

    async def _resume(self, job: Job) -> Resume:
        """The results that other runners have left."""
        if job.attempt == 1:
            return Resume()
        checkpoints = {}
        for index in set(range(job.request.num_images)) - set(job.output):
            try:
                key = checkpoint_key(job.id, index)
                data = await until_it_is_done(partial(self._objects.read, key))
                # In a thread, because the first one imports torch, and leases are renewed on the event loop.
                checkpoints[index] = await asyncio.to_thread(
                    from_bytes, data, self._settings.fingerprint(job.request)
                )
            except ObjectNotFoundError:
                continue
            except UnusableCheckpointError as error:
                self._metrics.count_left_checkpoint()
                logger.warning("job %s: the checkpoint of image %d cannot be used: %s", job.id, index, error)
        return Resume(frozenset(job.output), checkpoints)

    async def _keep_checkpoint(self, job: Job, index: int, checkpoint: Checkpoint) -> None:
        """Stores a checkpoint, but never waits for it: if that fails, the image continues without."""
        try:
            data = to_bytes(checkpoint, self._settings.fingerprint(job.request))
            await self._objects.put(checkpoint_key(job.id, index), data)
        except AWAY as error:
            logger.warning("job %s: a checkpoint was not stored: %s", job.id, error.detail)

    async def _record_progress(self) -> None:
        """Records all jobs in one transaction, because SQLite has one writer and clients wait to add jobs."""
        progress, self._progress = self._progress, {}
        for job_id in await self._queue.record_progress(progress):
            if running := self._running.get(job_id):
                running.is_begun = True

    async def _count_waiting(self) -> None:
        self._metrics.set_waiting(await self._store.housekeeping.waiting())

    async def _expire_answers(self) -> None:
        await self._objects.delete_older(ANSWERS_FOLDER, self._settings.answer_retention_s)

    async def _give_back(self) -> None:
        tasks = [running.task for running in self._running.values()]
        jobs = [running.job for running in self._running.values()]
        for running in self._running.values():
            running.leave()
        await asyncio.gather(*tasks, self._deliveries.stop(), return_exceptions=True)
        await self._give_back_claimed(jobs)

    async def _give_back_claimed(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            try:
                await self._queue.give_back(Claim.of(job))
            except AWAY as error:
                logger.warning("job %s will be taken over after its lease: %s", job.id, error.detail)
