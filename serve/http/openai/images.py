"""OpenAI's images dialect: images from a prompt, from a picture, and variations of a picture."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.engine.messages import EncodedImage
from serve.http.authentication import client_of
from serve.http.body import bounded_body
from serve.http.event_stream import EventStream
from serve.http.front_desk import FrontDesk
from serve.http.openai import operations
from serve.http.openai.answer_images import AnswerImages
from serve.http.openai.answering import (
    EDIT,
    GENERATION,
    Kind,
    collected,
    data,
    described,
    streamed,
    usage,
)
from serve.http.openai.answers import Images
from serve.http.openai.edit_bodies import EditBodies
from serve.http.openai.edit_schema import EditsBody, VariationsBody
from serve.http.openai.schema import CommonBody, hint_warnings, read_body, wanted_of
from serve.http.operations import described as described_by
from serve.http.problems import request_id
from serve.http.warnings import answer_warnings
from serve.wanted import Wanted

_PATH = "/v1/images"


class ImagesRoute:
    """The handlers of the routes."""

    def __init__(self, desk: FrontDesk, answer_images: AnswerImages, edit_bodies: EditBodies) -> None:
        self._desk = desk
        self._answer_images = answer_images
        self._edit_bodies = edit_bodies

    @property
    def routes(self) -> list[Route]:
        return [
            Route(f"{_PATH}/generations", self._generate, methods=["POST"]),
            Route(f"{_PATH}/edits", self._edit, methods=["POST"]),
            Route(f"{_PATH}/variations", self._vary, methods=["POST"]),
        ]

    @described_by(operations.GENERATE)
    async def _generate(self, http_request: Request) -> Response:
        # In a thread, because a large body takes a while.
        came_at = time.time()
        body = await asyncio.to_thread(read_body, await bounded_body(http_request))
        wanted = replace(wanted_of(body), came_at=came_at)
        return await self._answer(body, wanted, GENERATION, http_request)

    @described_by(operations.EDIT)
    async def _edit(self, http_request: Request) -> Response:
        body, wanted = await self._edit_bodies.read(EditsBody, http_request)
        return await self._answer(body, wanted, EDIT, http_request)

    @described_by(operations.VARY)
    async def _vary(self, http_request: Request) -> Response:
        body, wanted = await self._edit_bodies.read(VariationsBody, http_request)
        return await self._answer(body, wanted, EDIT, http_request)

    async def _answer(self, body: CommonBody, wanted: Wanted, kind: Kind, http_request: Request) -> Response:
        if body.response_format == "url" and not body.stream:
            self._answer_images.check()
        generation = await self._desk.submit(wanted, client_of(http_request), request_id(http_request))
        hints = hint_warnings(body)
        if body.stream:
            return EventStream(streamed(generation, hints, kind), generation)
        async with aclosing(generation):
            made = await collected(generation)
        # Stored after the generation has given back its places.
        urls = await self._urls(body, [done.image for done in made.images], http_request)
        answer: Images = {
            "created": int(time.time()),
            "data": data(made, urls, with_images=body.response_format != "url"),
            **described(generation.request),
            "usage": usage(made.encoded),
        }
        if sentences := answer_warnings(generation.request, made.encoded, hints):
            answer["warnings"] = sentences
        return JSONResponse(answer)

    async def _urls(
        self, body: CommonBody, images: Sequence[EncodedImage], http_request: Request
    ) -> list[str] | None:
        if body.response_format == "b64_json":
            return None
        if body.response_format == "url":
            return await self._answer_images.urls(images, http_request)
        return await self._answer_images.urls_if_possible(images, http_request)
