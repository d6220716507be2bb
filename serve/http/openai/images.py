"""OpenAI's images dialect: `POST /v1/images/generations`, plain and streamed."""

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.engine.messages import EncodedImage
from serve.calls.pipeline import PREVIEW_FORMAT
from serve.errors import MidstepError
from serve.generation import GenerationRequest, ImageDone, ImagePreview, PromptEncoded
from serve.http.authentication import client_of
from serve.http.body import bounded_body
from serve.http.event_stream import EventStream
from serve.http.front_desk import FrontDesk, Generation
from serve.http.openai import operations
from serve.http.openai.answers import (
    CompletedImage,
    Description,
    Image,
    Images,
    OutputFormat,
    PartialImage,
    Usage,
)
from serve.http.openai.schema import read_body, wanted_of
from serve.http.operations import described
from serve.http.problems import ErrorEvent, error_event, request_id
from serve.http.warnings import syntax_warnings
from serve.served_model import MEDIA_TYPES

logger = logging.getLogger("ray.serve")
_FORMAT_NAMES = {media_type: cast(OutputFormat, name) for name, media_type in MEDIA_TYPES.items()}


class ImagesRoute:
    """The handler of the route."""

    def __init__(self, desk: FrontDesk) -> None:
        self._desk = desk

    @property
    def routes(self) -> list[Route]:
        return [Route("/v1/images/generations", self._generate, methods=["POST"])]

    @described(operations.GENERATE)
    async def _generate(self, http_request: Request) -> Response:
        # In a thread, since a large body takes a while.
        body = await asyncio.to_thread(read_body, await bounded_body(http_request))
        generation = await self._desk.submit(
            wanted_of(body), client_of(http_request), request_id(http_request)
        )
        if body.stream:
            return EventStream(_streamed(generation), generation)
        async with aclosing(generation):
            return JSONResponse(await _collected(generation))


async def _collected(generation: Generation) -> Images:
    """The answer with all images, in the order of their seeds."""
    images: dict[int, Image] = {}
    encoded = PromptEncoded(0, 0, 0)
    async for event in generation:
        match event:
            case PromptEncoded():
                encoded = event
            case ImageDone(index, seed, image):
                images[index] = {"b64_json": _base64(image), "seed": seed}
    answer: Images = {
        "created": int(time.time()),
        "data": [images[index] for index in sorted(images)],
        **_described(generation.request),
        "usage": _usage(encoded),
    }
    if warnings := _warnings(generation.request, encoded):
        answer["warnings"] = warnings
    return answer


async def _streamed(generation: Generation) -> AsyncGenerator[ServerSentEvent, None]:
    request, encoded = generation.request, PromptEncoded(0, 0, 0)
    try:
        async for event in generation:
            match event:
                case PromptEncoded():
                    encoded = event
                case ImagePreview():
                    yield _server_sent(_partial(request, event))
                case ImageDone():
                    yield _server_sent(_completed(request, event, encoded))
    except MidstepError as error:
        # The status is sent already; the clients look for this object.
        logger.warning("request %s ended in mid-stream: %s", request.request_id, error.detail, exc_info=error)
        yield _server_sent(error_event(error))
    except Exception:  # the boundary of a stream: one that just stopped would look complete
        logger.exception("request %s failed in mid-stream", request.request_id)
        yield _server_sent(error_event(MidstepError("A fault of ours.")))


def _partial(request: GenerationRequest, event: ImagePreview) -> PartialImage:
    return {
        "type": "image_generation.partial_image",
        "b64_json": _base64(event.image),
        "created_at": int(time.time()),
        "partial_image_index": event.preview_index,
        "image_index": event.image_index,
        "step": event.step,
        **_described(request),
        "output_format": _FORMAT_NAMES[PREVIEW_FORMAT.media_type],
    }


def _completed(request: GenerationRequest, event: ImageDone, encoded: PromptEncoded) -> CompletedImage:
    completed: CompletedImage = {
        "type": "image_generation.completed",
        "b64_json": _base64(event.image),
        "image_index": event.image_index,
        "created_at": int(time.time()),
        "seed": event.seed,
        **_described(request),
        "usage": _usage(encoded),
    }
    if warnings := _warnings(request, encoded):
        completed["warnings"] = warnings
    return completed


def _described(request: GenerationRequest) -> Description:
    """What OpenAI's objects say of an image, and how it was made."""
    return {
        "model": request.model,
        "size": f"{request.width}x{request.height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": _FORMAT_NAMES[request.image_format.media_type],
        "sampler": request.sampler,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
    }


def _base64(image: EncodedImage) -> str:
    return base64.b64encode(image.data).decode("ascii")


def _server_sent(data: PartialImage | CompletedImage | ErrorEvent) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data), event=data["type"])


def _usage(encoded: PromptEncoded) -> Usage:
    """Images are not counted in tokens here."""
    tokens = min(encoded.num_tokens, encoded.max_tokens)
    return {
        "input_tokens": tokens,
        "output_tokens": 0,
        "total_tokens": tokens,
        "input_tokens_details": {"text_tokens": tokens, "image_tokens": 0},
    }


def _warnings(request: GenerationRequest, encoded: PromptEncoded) -> list[str]:
    """What was done otherwise than asked."""
    given = {"prompt": encoded.num_tokens, "negative_prompt": encoded.negative_num_tokens}
    sentences = [
        f"{field}: has {tokens} tokens, of which the model reads the first {encoded.max_tokens}; "
        "the end was cut off."
        for field, tokens in given.items()
        if tokens > encoded.max_tokens
    ]
    return sentences + syntax_warnings(request)
