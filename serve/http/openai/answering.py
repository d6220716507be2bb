"""OpenAI's objects for images, from the events of a generation: a whole answer or a stream."""

import base64
import json
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from sse_starlette import ServerSentEvent

from deployments.engine.messages import NO_TOKENS, EncodedImage
from serve.calls.pipeline import PREVIEW_FORMAT
from serve.errors import MidstepError
from serve.generation import GenerationRequest, ImageDone, ImagePreview, PromptEncoded
from serve.http.front_desk import Generation
from serve.http.openai.answers import (
    CompletedImage,
    Description,
    Image,
    OutputFormat,
    PartialImage,
    Usage,
)
from serve.http.problems import ErrorEvent, error_event
from serve.http.warnings import answer_warnings
from serve.parameters import MEDIA_TYPES

logger = logging.getLogger("ray.serve")
# OpenAI's names; if a format has two, the last one, which is jpeg.
_FORMAT_NAMES = {media_type: cast(OutputFormat, name) for name, media_type in MEDIA_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Kind:
    """The names of a stream's events."""

    partial: Literal["image_generation.partial_image", "image_edit.partial_image"]
    completed: Literal["image_generation.completed", "image_edit.completed"]


GENERATION = Kind("image_generation.partial_image", "image_generation.completed")
EDIT = Kind("image_edit.partial_image", "image_edit.completed")


@dataclass(frozen=True, slots=True)
class Made:
    """The results of a request. images: in the order of their seeds"""

    images: list[ImageDone]
    encoded: PromptEncoded


async def collected(generation: Generation) -> Made:
    images: dict[int, ImageDone] = {}
    encoded = PromptEncoded(NO_TOKENS, NO_TOKENS)
    async for event in generation:
        match event:
            case PromptEncoded():
                encoded = event
            case ImageDone():
                images[event.image_index] = event
    return Made([images[index] for index in sorted(images)], encoded)


def data(made: Made, urls: Sequence[str] | None, with_images: bool) -> list[Image]:
    data: list[Image] = [{"seed": done.seed} for done in made.images]
    if with_images:
        for done, one in zip(made.images, data, strict=True):
            one["b64_json"] = _base64(done.image)
    if urls is not None:
        for url, one in zip(urls, data, strict=True):
            one["url"] = url
    return data


async def streamed(
    generation: Generation, hints: Sequence[str], kind: Kind
) -> AsyncGenerator[ServerSentEvent, None]:
    """Previews and images as they come, and at the end the error if there is one."""
    request, encoded = generation.request, PromptEncoded(NO_TOKENS, NO_TOKENS)
    try:
        async for event in generation:
            match event:
                case PromptEncoded():
                    encoded = event
                case ImagePreview():
                    yield _server_sent(_partial(request, event, kind))
                case ImageDone():
                    yield _server_sent(_completed(request, event, encoded, hints, kind))
    except MidstepError as error:
        # The status is already sent; clients look for this object.
        logger.warning("request %s ended in mid-stream: %s", request.request_id, error.detail, exc_info=error)
        yield _server_sent(error_event(error))
    except Exception:  # the boundary of a stream: if it just stopped, it would look complete
        logger.exception("request %s failed in mid-stream", request.request_id)
        yield _server_sent(error_event(MidstepError("An internal error.")))


def _partial(request: GenerationRequest, event: ImagePreview, kind: Kind) -> PartialImage:
    return {
        "type": kind.partial,
        "b64_json": _base64(event.image),
        "created_at": int(time.time()),
        "partial_image_index": event.preview_index,
        "image_index": event.image_index,
        "step": event.step,
        **described(request),
        "size": f"{event.image.width}x{event.image.height}",
        "output_format": _FORMAT_NAMES[PREVIEW_FORMAT.media_type],
    }


def _completed(
    request: GenerationRequest, event: ImageDone, encoded: PromptEncoded, hints: Sequence[str], kind: Kind
) -> CompletedImage:
    completed: CompletedImage = {
        "type": kind.completed,
        "b64_json": _base64(event.image),
        "image_index": event.image_index,
        "created_at": int(time.time()),
        "seed": event.seed,
        **described(request),
        "usage": usage(encoded),
    }
    if sentences := answer_warnings(request, encoded, hints):
        completed["warnings"] = sentences
    return completed


def described(request: GenerationRequest) -> Description:
    """Parameters of an image, as in OpenAI's objects."""
    return {
        "model": request.model,
        "size": "{1}x{0}".format(*request.output_size),
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


def usage(encoded: PromptEncoded) -> Usage:
    """OpenAI's usage object. Images are not counted in tokens here."""
    tokens = encoded.tokens.read
    return {
        "input_tokens": tokens,
        "output_tokens": 0,
        "total_tokens": tokens,
        "input_tokens_details": {"text_tokens": tokens, "image_tokens": 0},
    }
