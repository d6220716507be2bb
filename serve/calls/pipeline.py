"""Encode, denoise and decode as one stream of events. Only this file knows the order of the stages."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from opentelemetry.context import Context
from ray.serve.handle import DeploymentHandle

from deployments.engine.messages import (
    Checkpoint,
    DenoisedLatents,
    DenoiseEvent,
    DenoiseRequest,
    EncodedImage,
    EncodedPicture,
    ImageFormat,
    Picture,
    PromptEmbeds,
    StepProgress,
)
from deployments.engine.model_source import ModelRef
from serve.calls.deadline import until
from serve.calls.denoise_requests import denoise_request
from serve.calls.failover import call, call_once, denoise, retried
from serve.calls.image_metadata import image_metadata
from serve.calls.stage_costs import StageCosts
from serve.calls.telemetry import Telemetry
from serve.generation import (
    GenerationEvent,
    GenerationRequest,
    ImageDone,
    ImagePreview,
    ImageProgress,
    PromptEncoded,
    Resume,
)

logger = logging.getLogger("ray.serve")
Result = TypeVar("Result")

FROM_THE_START = Resume()
PREVIEW_FORMAT = ImageFormat("image/jpeg", quality=80)


class Pipeline:
    """The stages, called in order.

    model: what requests without one are for, as in jobs of earlier versions
    telemetry: this process's telemetry
    """

    def __init__(
        self,
        encoder: DeploymentHandle,
        denoiser: DeploymentHandle,
        decoder: DeploymentHandle,
        model: ModelRef,
        telemetry: Telemetry,
    ) -> None:
        self._encoder = encoder
        self._denoiser = denoiser
        self._decoder = decoder
        self.model = model
        self._telemetry = telemetry
        self.costs = StageCosts(encoder, denoiser, decoder, model)

    async def generate(
        self,
        request: GenerationRequest,
        picture: Picture | None = None,
        resume: Resume = FROM_THE_START,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """PromptEncoded, then progress, previews and ImageDone of all images, as they come.

        picture: what a request with a `start` starts from
        Leaving the iterator cancels the work. Raises DeadlineExceededError and GenerationFailedError.
        """
        with self._telemetry.request(request) as context:
            model = request.ref or self.model
            if request.ref is not None:
                self.costs.learn_soon(request.ref)
            encoding = self._encode_both(request, model, picture, context)
            embeds, encoded = await until(request.deadline, encoding)
            yield PromptEncoded(embeds.tokens, embeds.negative_tokens)
            inputs = _Inputs(model, embeds, picture, encoded)
            images = [
                self._image(request, index, inputs, resume.checkpoints.get(index), context)
                for index in range(request.num_images)
                if index not in resume.done
            ]
            async with aclosing(_merge(images, request.deadline)) as events:
                async for event in events:
                    yield event

    async def _encode_both(
        self, request: GenerationRequest, model: ModelRef, picture: Picture | None, context: Context
    ) -> tuple[PromptEmbeds, EncodedPicture | None]:
        """Encodes the text and, at the same time, the picture."""
        encoding = asyncio.ensure_future(self._encode_picture(request, model, picture, context))
        try:
            return await self._encode(request, model, context), await encoding
        finally:
            encoding.cancel()
            await asyncio.gather(encoding, return_exceptions=True)

    async def _encode(self, request: GenerationRequest, model: ModelRef, context: Context) -> PromptEmbeds:
        with self._telemetry.stage("encode", request, context):
            wanted = (request.text, model)
            embeds: PromptEmbeds = await call(request.request_id, self._encoder, "encode", *wanted)
        return embeds

    async def _encode_picture(
        self, request: GenerationRequest, model: ModelRef, picture: Picture | None, context: Context
    ) -> EncodedPicture | None:
        if picture is None:
            return None
        wanted = (model, picture, request.height, request.width, request.deterministic)
        with self._telemetry.stage("encode picture", request, context):
            encoded: EncodedPicture = await call(request.request_id, self._decoder, "encode", *wanted)
        return encoded

    async def _image(
        self,
        request: GenerationRequest,
        index: int,
        inputs: "_Inputs",
        resume_from: Checkpoint | None,
        context: Context,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Every image is a separate request to the denoiser, so that images can spread over replicas."""
        num_previews, latents = 0, None
        first_pass = 0 if resume_from is None else resume_from.in_pass
        for in_pass in range(first_pass, len(request.passes)):
            start = await self._start(request, in_pass, inputs, latents, resume_from, context)
            wanted = denoise_request(
                request, inputs.model.unet, index, in_pass, inputs.embeds, start, resume_from
            )
            resume_from = None
            steps_before = request.steps_before(in_pass)
            unseen = sorted(wanted.preview_steps)
            async with aclosing(self._denoise(request, inputs.model, index, wanted, context)) as events:
                async for event in events:
                    match event:
                        case StepProgress(_, step, preview_latents):
                            # After a restart the steps come again; no preview is shown twice.
                            if step in unseen:
                                del unseen[: unseen.index(step) + 1]
                                preview = await self._preview(
                                    request.request_id, inputs.model, preview_latents
                                )
                                yield ImagePreview(index, num_previews, steps_before + step, preview)
                                num_previews += 1
                        case Checkpoint():
                            kept = replace(event, in_pass=in_pass)
                            yield ImageProgress(index, kept, steps_before + event.step)
                        case DenoisedLatents():
                            latents = event.latents
        image = await self._decode(request, index, latents, inputs, context)
        yield ImageDone(index, request.seed + index, image)

    async def _decode(
        self,
        request: GenerationRequest,
        index: int,
        latents: Any,
        inputs: "_Inputs",
        context: Context,
    ) -> EncodedImage:
        metadata = image_metadata(request, request.seed + index)
        around = inputs.picture if request.start is not None and request.start.is_laid_around else None
        wanted = (inputs.model, latents, request.image_format, metadata, request.deterministic, around)
        with self._telemetry.stage("decode", request, context, image_index=index):
            image: EncodedImage = await call(request.request_id, self._decoder, "decode", *wanted)
        return image

    async def _start(
        self,
        request: GenerationRequest,
        in_pass: int,
        inputs: "_Inputs",
        latents: Any,
        resume_from: Checkpoint | None,
        context: Context,
    ) -> EncodedPicture | None:
        """What a pass starts from. latents: of the pass before"""
        if in_pass == 0:
            return inputs.encoded
        assert request.hires is not None, "only this makes a second pass"
        if resume_from is not None:
            # The checkpoint has the latents. Only the number of draws matters, which the upscaler decides.
            nothing = resume_from.state[0].new_zeros(resume_from.state[0].shape)
            return EncodedPicture(nothing, None if request.hires.upscaler == "latent" else nothing)
        hires, deterministic = request.hires, request.deterministic
        wanted = (inputs.model, latents, hires.latent_shape, hires.upscaler, deterministic)
        with self._telemetry.stage("enlarge", request, context):
            enlarged: EncodedPicture = await call(request.request_id, self._decoder, "enlarge", *wanted)
        return enlarged

    async def _denoise(
        self,
        request: GenerationRequest,
        model: ModelRef,
        index: int,
        wanted: DenoiseRequest,
        context: Context,
    ) -> AsyncGenerator[DenoiseEvent, None]:
        attributes = {
            "image_index": index,
            "rows": wanted.rows_at(wanted.first_call),
            "steps": wanted.num_steps,
            "resumed": wanted.resume_from is not None,
        }
        with self._telemetry.stage("denoise", request, context, **attributes):
            async with aclosing(denoise(self._denoiser, wanted, model)) as events:
                async for event in events:
                    yield event

    async def _preview(self, request_id: str, model: ModelRef, latents: Any) -> EncodedImage:
        return await retried(
            request_id, lambda: call_once(self._decoder.preview.remote, model, latents, PREVIEW_FORMAT)
        )


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What all images of a request share. encoded: the encoded picture"""

    model: ModelRef
    embeds: PromptEmbeds
    picture: Picture | None
    encoded: EncodedPicture | None


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
            event = await until(deadline, queue.get())
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
