"""OpenAI's images dialect: `POST /v1/images/generations`, and answers of the routes beside it."""

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import cast

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.engine.messages import EncodedImage
from serve.calls.pipeline import PREVIEW_FORMAT
from serve.errors import BodyTooLargeError, InvalidRequestError, MidstepError
from serve.generation import GenerationRequest, ImageDone, ImagePreview, PromptEncoded
from serve.http.authentication import client_of
from serve.http.body import bounded_body
from serve.http.event_stream import EventStream
from serve.http.front_desk import FrontDesk, Generation
from serve.http.openai import operations
from serve.http.openai.answer_images import AnswerImages
from serve.http.openai.answers import (
    CompletedImage,
    Description,
    Image,
    Images,
    OutputFormat,
    PartialImage,
    Usage,
)
from serve.http.openai.schema import ImagesBody, hint_warnings, read_body, wanted_of
from serve.http.operations import described
from serve.http.problems import ErrorEvent, error_event, request_id
from serve.http.warnings import syntax_warnings
from serve.served_model import MEDIA_TYPES

logger = logging.getLogger("ray.serve")
_PATH = "/v1/images"
# OpenAI's names; if a format has two, the last one, which is jpeg.
_FORMAT_NAMES = {media_type: cast(OutputFormat, name) for name, media_type in MEDIA_TYPES.items()}


@dataclass(frozen=True, slots=True)
class _Made:
    """The results of a request. images: in the order of their seeds"""

    images: list[ImageDone]
    encoded: PromptEncoded


class ImagesRoute:
    """The handlers of the routes."""

    def __init__(self, desk: FrontDesk, answer_images: AnswerImages) -> None:
        self._desk = desk
        self._answer_images = answer_images

    @property
    def routes(self) -> list[Route]:
        return [
            Route(f"{_PATH}/generations", self._generate, methods=["POST"]),
            Route(f"{_PATH}/edits", self._refuse, methods=["POST"], include_in_schema=False),
            Route(f"{_PATH}/variations", self._refuse, methods=["POST"], include_in_schema=False),
        ]

    @described(operations.GENERATE)
    async def _generate(self, http_request: Request) -> Response:
        # In a thread, because a large body takes a while.
        body = await asyncio.to_thread(read_body, await bounded_body(http_request))
        wanted = wanted_of(body)
        if body.response_format == "url" and not body.stream:
            self._answer_images.check()
        generation = await self._desk.submit(wanted, client_of(http_request), request_id(http_request))
        hints = hint_warnings(body)
        if body.stream:
            return EventStream(_streamed(generation, hints), generation)
        async with aclosing(generation):
            made = await _collected(generation)
        # Stored after the generation has given back its places.
        urls = await self._urls(body, [done.image for done in made.images], http_request)
        data = _data(made, urls, with_images=body.response_format != "url")
        answer: Images = {
            "created": int(time.time()),
            "data": data,
            **_described(generation.request),
            "usage": _usage(made.encoded),
        }
        if warnings := _warnings(generation.request, made.encoded, hints):
            answer["warnings"] = warnings
        return JSONResponse(answer)

    async def _urls(
        self, body: ImagesBody, images: Sequence[EncodedImage], http_request: Request
    ) -> list[str] | None:
        if body.response_format == "b64_json":
            return None
        if body.response_format == "url":
            return await self._answer_images.urls(images, http_request)
        return await self._answer_images.urls_if_possible(images, http_request)

    async def _refuse(self, http_request: Request) -> Response:
        with suppress(BodyTooLargeError):  # read, because a client that still sends may not see the answer
            await bounded_body(http_request)
        raise InvalidRequestError(
            f"Images cannot be edited or varied here yet; POST {_PATH}/generations makes them from a prompt."
        )


async def _collected(generation: Generation) -> _Made:
    images: dict[int, ImageDone] = {}
    encoded = PromptEncoded(0, 0, 0)
    async for event in generation:
        match event:
            case PromptEncoded():
                encoded = event
            case ImageDone():
                images[event.image_index] = event
    return _Made([images[index] for index in sorted(images)], encoded)


def _data(made: _Made, urls: Sequence[str] | None, with_images: bool) -> list[Image]:
    data: list[Image] = [{"seed": done.seed} for done in made.images]
    if with_images:
        for done, one in zip(made.images, data, strict=True):
            one["b64_json"] = _base64(done.image)
    if urls is not None:
        for url, one in zip(urls, data, strict=True):
            one["url"] = url
    return data


async def _streamed(generation: Generation, hints: Sequence[str]) -> AsyncGenerator[ServerSentEvent, None]:
    request, encoded = generation.request, PromptEncoded(0, 0, 0)
    try:
        async for event in generation:
            match event:
                case PromptEncoded():
                    encoded = event
                case ImagePreview():
                    yield _server_sent(_partial(request, event))
                case ImageDone():
                    yield _server_sent(_completed(request, event, encoded, hints))
    except MidstepError as error:
        # The status is already sent; clients look for this object.
        logger.warning("request %s ended in mid-stream: %s", request.request_id, error.detail, exc_info=error)
        yield _server_sent(error_event(error))
    except Exception:  # the boundary of a stream: if it just stopped, it would look complete
        logger.exception("request %s failed in mid-stream", request.request_id)
        yield _server_sent(error_event(MidstepError("An internal error.")))


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


def _completed(
    request: GenerationRequest, event: ImageDone, encoded: PromptEncoded, hints: Sequence[str]
) -> CompletedImage:
    completed: CompletedImage = {
        "type": "image_generation.completed",
        "b64_json": _base64(event.image),
        "image_index": event.image_index,
        "created_at": int(time.time()),
        "seed": event.seed,
        **_described(request),
        "usage": _usage(encoded),
    }
    if warnings := _warnings(request, encoded, hints):
        completed["warnings"] = warnings
    return completed


def _described(request: GenerationRequest) -> Description:
    """Parameters of an image, as in OpenAI's objects."""
    return {
        "model": request.model,
        "size": f"{request.width}x{request.height}",
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
    """OpenAI's usage object. Images are not counted in tokens here."""
    tokens = min(encoded.num_tokens, encoded.max_tokens)
    return {
        "input_tokens": tokens,
        "output_tokens": 0,
        "total_tokens": tokens,
        "input_tokens_details": {"text_tokens": tokens, "image_tokens": 0},
    }


def _warnings(request: GenerationRequest, encoded: PromptEncoded, hints: Sequence[str]) -> list[str]:
    """Says what was done otherwise than asked. hints: those that change nothing"""
    given = {"prompt": encoded.num_tokens, "negative_prompt": encoded.negative_num_tokens}
    sentences = [
        f"{field}: has {tokens} tokens, of which the model reads the first {encoded.max_tokens}; "
        "the end was cut off."
        for field, tokens in given.items()
        if tokens > encoded.max_tokens
    ]
    return [*sentences, *syntax_warnings(request), *hints]
