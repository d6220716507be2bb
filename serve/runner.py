"""The runner's deployment, which runs jobs for as long as it lives."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from importlib import import_module

from ray.serve.handle import DeploymentHandle

from deployments.engine.fingerprint import fingerprint
from deployments.engine.messages import Picture
from deployments.engine.model_source import ModelInfo, ModelRef
from serve.calls.pipeline import Pipeline
from serve.calls.telemetry import Telemetry
from serve.config.app import AppConfig
from serve.generation import GenerationEvent, GenerationRequest, Resume
from serve.http.replicate.prediction import describe
from serve.jobs.job_runner import JobRunner, RunnerSettings
from serve.jobs.opening import opened
from serve.jobs.resources import job_store, object_store
from serve.jobs.webhooks import WebhookSender
from serve.ray_internals import set_request_id


class Runner:
    """config: with its section `jobs` resolved; model: the configured one"""

    def __init__(
        self,
        config: AppConfig,
        info: ModelInfo,
        model: ModelRef,
        encoder: DeploymentHandle,
        denoiser: DeploymentHandle,
        decoder: DeploymentHandle,
    ) -> None:
        self._config = config
        self._info = info
        self._model = model
        self._pipeline = Pipeline(encoder, denoiser, decoder, model, Telemetry())
        # Serve calls constructors on the replica's event loop. __del__ stops the task that is started here.
        self._task = asyncio.get_running_loop().create_task(self._run(), name="job-runner")

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        if self._task.done():
            raise RuntimeError("the job runner has ended")

    async def __del__(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        jobs, internal = self._config.jobs, self._config.internal
        settings = RunnerSettings(
            max_images=self._config.images_per_runner(self._info),
            lease_s=internal.lease_s,
            poll_interval_s=internal.poll_interval_s,
            retention_s=jobs.retention_s,
            forget_after_s=jobs.forget_after_s,
            answer_retention_s=jobs.answer_retention_s,
            fingerprint=self._fingerprint,
        )
        models = [self._config.model.shown_id]
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(opened(job_store(jobs, models, describe)))
            webhooks = await stack.enter_async_context(
                WebhookSender(jobs.webhook_secrets, jobs.allow_private_webhooks)
            )
            await JobRunner(store, object_store(jobs), webhooks, self._generate, settings).run()

    def _fingerprint(self, request: GenerationRequest) -> str:
        """The fingerprint of the request's model and of the engine."""
        engine = self._config.engine_config(self._info)
        rank = engine.max_rank if request.adapters else 0
        model, placement = request.ref or self._model, self._config.placement()
        return fingerprint(model, placement, engine.deterministic_rows, rank)

    async def _generate(
        self, request: GenerationRequest, picture: Picture | None, resume: Resume
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Generates under the job's id, which then appears in the logs of every stage: there is no HTTP
        request whose id Serve would use. Each job runs in its own task, so the id is that job's only."""
        # The stages send tensors. A runner starts without torch, and the first tensor would import it on the
        # event loop, where leases are renewed.
        await asyncio.to_thread(import_module, "torch")
        set_request_id(request.request_id)
        async with aclosing(self._pipeline.generate(request, picture, resume)) as events:
            async for event in events:
                yield event
