"""Encode, denoise and decode as one stream of events. Only this file knows the order of the stages."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Collection, Sequence
from contextlib import aclosing
from dataclasses import fields, replace
from typing import Any, TypeVar

from opentelemetry.context import Context
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from deployments.engine.cost import CostModel
from deployments.engine.infotext import infotext
from deployments.engine.messages import (
    Checkpoint,
    DenoisedLatents,
    DenoiseEvent,
    DenoiseRequest,
    EncodedImage,
    ImageFormat,
    PromptEmbeds,
    StepProgress,
)
from deployments.engine.prompt_text import PromptText
from serve.calls.failover import call, call_once, denoise, retried
from serve.calls.telemetry import Telemetry
from serve.errors import DeadlineExceededError, NotReadyError
from serve.generation import (
    GenerationEvent,
    GenerationRequest,
    ImageDone,
    ImagePreview,
    ImageProgress,
    PromptEncoded,
    Resume,
)

Result = TypeVar("Result")

FROM_THE_START = Resume()
# Parameters that a picture's metadata leaves out where they have their default values.
_ONLY_IF_UNUSUAL = {"eta", "guidance_start", "guidance_end"}
PREVIEW_FORMAT = ImageFormat("image/jpeg", quality=80)


class Pipeline:
    """The stages, called in order. telemetry: this process's telemetry"""

    def __init__(
        self,
        encoder: DeploymentHandle,
        denoiser: DeploymentHandle,
        decoder: DeploymentHandle,
        telemetry: Telemetry,
    ) -> None:
        self._encoder = encoder
        self._denoiser = denoiser
        self._decoder = decoder
        self._telemetry = telemetry
        # In the cost model's order.
        self._stages = {"encoder": encoder, "denoiser": denoiser, "decoder": decoder}
        self._costs: dict[str, Any] = {}  # by stage
        self._cost_model: CostModel | None = None

    async def generate(
        self, request: GenerationRequest, resume: Resume = FROM_THE_START
    ) -> AsyncGenerator[GenerationEvent, None]:
        """PromptEncoded, then progress, previews and ImageDone of all images, as they come.

        Leaving the iterator cancels the work. Raises DeadlineExceededError and GenerationFailedError.
        """
        with self._telemetry.request(request) as context:
            embeds = await _until(request.deadline, self._encode(request, context))
            yield PromptEncoded(embeds.num_tokens, embeds.negative_num_tokens, embeds.max_tokens)
            images = [
                self._image(request, index, embeds, resume.checkpoints.get(index), context)
                for index in range(request.num_images)
                if index not in resume.done
            ]
            async with aclosing(_merge(images, request.deadline)) as events:
                async for event in events:
                    yield event

    async def check_ready(self, timeout_s: float, asked_once: Collection[str] = ()) -> None:
        """Returns when every stage has answered. Raises NotReadyError.

        A call waits its turn among the requests. So once every stage has answered, a late answer means only
        that the stage is busy.
        asked_once: stages that are not called again after they have answered
        """
        done = self._costs.keys() & set(asked_once)
        try:
            await asyncio.wait_for(self._ask_costs(self._stages.keys() - done), timeout_s)
        except TimeoutError as error:
            if self.known_cost_model is None:
                raise NotReadyError(
                    "Not every stage has a replica that answers yet.", retry_after_s=1
                ) from error
        except RayError as error:
            raise NotReadyError("A stage has just lost its replica.", retry_after_s=1) from error

    @property
    def known_cost_model(self) -> CostModel | None:
        """The cost model; None before every stage has reported its costs."""
        return self._cost_model

    async def cost_model(self, deadline: float) -> CostModel:
        """The cost model, from the stages' replicas. Each stage is asked once.

        Raises DeadlineExceededError and GenerationFailedError.
        """
        while (known := self.known_cost_model) is None:
            await _until(
                deadline,
                retried(
                    "that asks what work costs",
                    lambda: self._ask_costs(self._stages.keys() - self._costs.keys()),
                ),
            )
        return known

    async def _ask_costs(self, stages: Collection[str]) -> None:
        async def ask(stage: str) -> None:
            self._costs[stage] = await call_once(self._stages[stage].cost.remote)
            if self._costs.keys() == self._stages.keys():
                self._cost_model = CostModel(*(self._costs[stage] for stage in self._stages))

        await asyncio.gather(*map(ask, stages))

    async def _encode(self, request: GenerationRequest, context: Context) -> PromptEmbeds:
        text = PromptText(request.prompt, request.negative_prompt, request.is_guided, request.deterministic)
        with self._telemetry.stage("encode", request, context):
            embeds: PromptEmbeds = await call(request.request_id, self._encoder, "encode", text)
        return embeds

    async def _image(
        self,
        request: GenerationRequest,
        index: int,
        embeds: PromptEmbeds,
        resume_from: Checkpoint | None,
        context: Context,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Every image is a separate request to the denoiser, so that images can spread over replicas."""
        wanted = _denoise_request(request, index, embeds, resume_from)
        num_previews = 0
        latents = None
        async with aclosing(self._denoise(request, index, wanted, context)) as events:
            async for event in events:
                match event:
                    case StepProgress(_, step, preview_latents):
                        # After a restart the steps come again; no preview is shown twice.
                        if step in sorted(wanted.preview_steps)[num_previews:]:
                            preview = await self._preview(request.request_id, preview_latents)
                            yield ImagePreview(index, num_previews, step, preview)
                            num_previews += 1
                    case Checkpoint():
                        yield ImageProgress(index, event)
                    case DenoisedLatents():
                        latents = event.latents
        seed = request.seed + index
        metadata = _metadata(request, seed)
        wanted_image = (latents, request.image_format, metadata, request.deterministic)
        with self._telemetry.stage("decode", request, context, image_index=index):
            image: EncodedImage = await call(request.request_id, self._decoder, "decode", *wanted_image)
        yield ImageDone(index, seed, image)

    async def _denoise(
        self, request: GenerationRequest, index: int, wanted: DenoiseRequest, context: Context
    ) -> AsyncGenerator[DenoiseEvent, None]:
        attributes = {
            "image_index": index,
            "rows": wanted.rows_at(wanted.first_call),
            "steps": wanted.num_inference_steps,
            "resumed": wanted.resume_from is not None,
        }
        with self._telemetry.stage("denoise", request, context, **attributes):
            async with aclosing(denoise(self._denoiser, wanted)) as events:
                async for event in events:
                    yield event

    async def _preview(self, request_id: str, latents: Any) -> EncodedImage:
        return await retried(
            request_id, lambda: call_once(self._decoder.preview.remote, latents, PREVIEW_FORMAT)
        )


def _denoise_request(
    request: GenerationRequest, index: int, embeds: PromptEmbeds, resume_from: Checkpoint | None
) -> DenoiseRequest:
    return DenoiseRequest(
        # Clients choose request ids and may use one twice at once; the engine's ids must differ.
        request_id=f"{request.request_id}/{index}/{uuid.uuid4().hex[:8]}",
        embeds=embeds,
        preview_steps=preview_steps(request.num_inference_steps, request.num_previews),
        work_s=None if request.work_s is None else request.work_s / request.num_images,
        resume_from=resume_from,
        **request.parameters() | {"seed": request.seed + index},
    )


def preview_steps(num_inference_steps: int, num_previews: int) -> frozenset[int]:
    """Evenly spaced steps before the last one; fewer than requested if there are too few steps."""
    parts = num_previews + 1
    steps = (round(num_inference_steps * part / parts) for part in range(1, parts))
    return frozenset(step for step in steps if 0 < step < num_inference_steps)


def _metadata(request: GenerationRequest, seed: int) -> dict[str, str]:
    """Everything that is needed to make the picture again."""
    unusual = {
        field.name: str(value)
        for field in fields(request)
        if field.name in _ONLY_IF_UNUSUAL and (value := getattr(request, field.name)) != field.default
    }
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt or "",
        "seed": str(seed),
        "sampler": request.sampler,
        "num_inference_steps": str(request.num_inference_steps),
        "guidance_scale": str(request.guidance_scale),
        **unusual,
        "model": request.model,
        "parameters": infotext(
            replace(request, seed=seed), request.prompt, request.negative_prompt, request.model
        ),
    }


async def _merge(
    streams: Sequence[AsyncGenerator[GenerationEvent, None]], deadline: float | None
) -> AsyncGenerator[GenerationEvent, None]:
    """The events of all streams in the order in which they come. An error in one stream ends all."""
    queue: asyncio.Queue[GenerationEvent | BaseException | None] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[GenerationEvent, None]) -> None:
        try:
            async with aclosing(stream):
                async for event in stream:
                    queue.put_nowait(event)
            queue.put_nowait(None)
        except Exception as error:  # raised to the reader of the merged stream
            queue.put_nowait(error)

    pumps = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        open_streams = len(pumps)
        while open_streams:
            event = await _until(deadline, queue.get())
            if isinstance(event, BaseException):
                raise event
            if event is None:
                open_streams -= 1
            else:
                yield event
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _until(deadline: float | None, awaitable: Awaitable[Result]) -> Result:
    """Awaits until the deadline, in seconds since the epoch."""
    if deadline is None:
        return await awaitable
    try:
        return await asyncio.wait_for(awaitable, max(0.0, deadline - time.time()))
    except TimeoutError as error:
        raise DeadlineExceededError("The request's deadline has passed; its work was stopped.") from error
