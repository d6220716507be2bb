"""OpenAI's images dialect: `POST /v1/images/generations`, plain and streamed."""

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from deployments.engine.messages import EncodedImage
from serve.acceptance import MEDIA_TYPES, Acceptance
from serve.calls.pipeline import PREVIEW_FORMAT, Pipeline
from serve.capacity.admission import Admission
from serve.capacity.rate_limits import RateLimits
from serve.config.app import AppConfig
from serve.errors import MidstepError
from serve.generation import GenerationRequest, ImageDone, ImagePreview, PromptEncoded
from serve.http.authentication import client_of
from serve.http.body import bounded_body
from serve.http.openai.schema import read_body, wanted_of
from serve.http.problems import error_object, request_id

logger = logging.getLogger("ray.serve")
_FORMAT_NAMES = {media_type: name for name, media_type in MEDIA_TYPES.items()}


class ImagesRoute:
    """The route's handler and what it works with."""

    def __init__(
        self,
        config: AppConfig,
        acceptance: Acceptance,
        pipeline: Pipeline,
        admission: Admission,
        rate_limits: RateLimits,
    ) -> None:
        self._config = config
        self._acceptance = acceptance
        self._pipeline = pipeline
        self._admission = admission
        self._rate_limits = rate_limits

    async def generate(self, http_request: Request) -> Response:
        body = await bounded_body(http_request)
        # In a thread, since a large body takes a while, and so does a sampler that is met for the first time.
        request, wants_stream = await asyncio.to_thread(self._accept, body, request_id(http_request))
        cost = self._pipeline.known_cost_model
        with ExitStack() as stack:
            with self._rate_limits.charged(client_of(http_request), request, cost):
                stack.enter_context(self._admission.admitted(request, cost))
                if request.deadline is not None:
                    self._admission.check_deadline(request, await self._pipeline.cost_model(request.deadline))
            if wants_stream:
                return _StreamResponse(self._stream(request), stack.pop_all())
            return JSONResponse(await self._collect(request))

    def _accept(self, raw: bytes, identifier: str) -> tuple[GenerationRequest, bool]:
        body = read_body(raw)
        self._acceptance.check_model(body.model, "model")
        return self._acceptance.accept(wanted_of(body), identifier), bool(body.stream)

    async def _collect(self, request: GenerationRequest) -> dict[str, Any]:
        """All images, in the order of their seeds."""
        images: dict[int, dict[str, Any]] = {}
        encoded = PromptEncoded(0, 0, 0)
        async with aclosing(self._pipeline.generate(request)) as events:
            async for event in events:
                match event:
                    case PromptEncoded():
                        encoded = event
                    case ImageDone(index, seed, image):
                        images[index] = {"b64_json": _base64(image), "seed": seed}
        data = [images[index] for index in sorted(images)]
        created = {"created": int(time.time()), "data": data}
        return created | self._described(request) | _usage(encoded) | _warnings(encoded)

    async def _stream(self, request: GenerationRequest) -> AsyncGenerator[ServerSentEvent, None]:
        encoded = PromptEncoded(0, 0, 0)
        try:
            async with aclosing(self._pipeline.generate(request)) as events:
                async for event in events:
                    match event:
                        case PromptEncoded():
                            encoded = event
                        case ImagePreview():
                            yield _server_sent(self._partial(request, event))
                        case ImageDone():
                            yield _server_sent(self._completed(request, event, encoded))
        except MidstepError as error:
            # The status is sent already; the clients look for this object.
            logger.warning(
                "request %s ended in mid-stream: %s", request.request_id, error.detail, exc_info=error
            )
            yield _server_sent({"type": "error", "error": error_object(error)})
        except Exception:  # the boundary of a stream: one that just stopped would look complete
            logger.exception("request %s failed in mid-stream", request.request_id)
            yield _server_sent({"type": "error", "error": error_object(MidstepError("A fault of ours."))})

    def _partial(self, request: GenerationRequest, event: ImagePreview) -> dict[str, Any]:
        return {
            "type": "image_generation.partial_image",
            "b64_json": _base64(event.image),
            "created_at": int(time.time()),
            "partial_image_index": event.preview_index,
            "image_index": event.image_index,
            "step": event.step,
            **self._described(request),
            "output_format": _FORMAT_NAMES[PREVIEW_FORMAT.media_type],
        }

    def _completed(
        self, request: GenerationRequest, event: ImageDone, encoded: PromptEncoded
    ) -> dict[str, Any]:
        return {
            "type": "image_generation.completed",
            "b64_json": _base64(event.image),
            "image_index": event.image_index,
            "created_at": int(time.time()),
            "seed": event.seed,
            **self._described(request),
            **_usage(encoded),
            **_warnings(encoded),
        }

    def _described(self, request: GenerationRequest) -> dict[str, Any]:
        """What OpenAI's objects say of an image, and how it was made."""
        return {
            "model": self._config.model.id,
            "size": f"{request.width}x{request.height}",
            "quality": "auto",
            "background": "opaque",
            "output_format": _FORMAT_NAMES[request.image_format.media_type],
            "sampler": request.sampler,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
        }


class _StreamResponse(EventSourceResponse):
    """Server-sent events that, however they end, leave the generator and give back what was held for them."""

    def __init__(self, events: AsyncGenerator[ServerSentEvent, None], held: ExitStack) -> None:
        super().__init__(events, ping=15, sep="\n")
        self._events = events
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)


def _base64(image: EncodedImage) -> str:
    return base64.b64encode(image.data).decode("ascii")


def _server_sent(data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data), event=data["type"])


def _usage(encoded: PromptEncoded) -> dict[str, Any]:
    """Images are not counted in tokens here."""
    tokens = min(encoded.num_tokens, encoded.max_tokens)
    details = {"text_tokens": tokens, "image_tokens": 0}
    usage = {
        "input_tokens": tokens,
        "output_tokens": 0,
        "total_tokens": tokens,
        "input_tokens_details": details,
    }
    return {"usage": usage}


def _warnings(encoded: PromptEncoded) -> dict[str, Any]:
    """What was done otherwise than asked; no key where there is nothing to say."""
    given = {"prompt": encoded.num_tokens, "negative_prompt": encoded.negative_num_tokens}
    cut = [
        f"{field}: has {tokens} tokens, of which the model reads the first {encoded.max_tokens}; "
        "the end was cut off."
        for field, tokens in given.items()
        if tokens > encoded.max_tokens
    ]
    return {"warnings": cut} if cut else {}
