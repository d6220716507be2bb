"""`POST /sdapi/v1/txt2img` and `/sdapi/v1/img2img`."""

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.errors import InvalidInputError, InvalidRequestError
from serve.http.a1111 import operations
from serve.http.a1111.answers import Images
from serve.http.a1111.bodies import Img2ImgBody, Txt2ImgBody
from serve.http.a1111.models import model_named
from serve.http.a1111.requests import asked_of
from serve.http.a1111.results import base64_of, info_of, results_of
from serve.http.a1111.running import Run, Running
from serve.http.a1111.samplers import sampler_name
from serve.http.a1111.settings import Settings
from serve.http.authentication import client_of
from serve.http.body import bounded_body, parse_body
from serve.http.front_desk import FrontDesk
from serve.http.operations import described
from serve.http.picture_sources import PictureSources
from serve.http.problems import request_id
from serve.http.warnings import answer_warnings
from serve.jobs.client_options import ClientOptions
from serve.served_model import ServedModel
from serve.wanted import Wanted

Body = Txt2ImgBody | Img2ImgBody


class ImagesRoutes:
    """The handlers of the routes."""

    def __init__(
        self, desk: FrontDesk, sources: PictureSources, options: ClientOptions, running: Running
    ) -> None:
        self._desk = desk
        self._sources = sources
        self._options = options
        self._running = running

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/sdapi/v1/txt2img", self._txt2img, methods=["POST"]),
            Route("/sdapi/v1/img2img", self._img2img, methods=["POST"]),
        ]

    @described(operations.TXT2IMG)
    async def _txt2img(self, request: Request) -> Response:
        return await self._answer(Txt2ImgBody, request)

    @described(operations.IMG2IMG)
    async def _img2img(self, request: Request) -> Response:
        return await self._answer(Img2ImgBody, request)

    async def _answer(self, schema: type[Body], request: Request) -> Response:
        try:
            return await self._made(schema, request)
        except InvalidRequestError as error:  # its clients expect 422
            raise InvalidInputError(error.detail, error.param) from error

    async def _made(self, schema: type[Body], request: Request) -> Response:
        came_at, client = time.time(), client_of(request)
        body = await asyncio.to_thread(parse_body, schema, await bounded_body(request))
        settings = Settings.of(await self._options.of(client.name), body.override_settings)
        name_field = settings.name("sd_model_checkpoint")
        model = model_named(self._desk.models, settings.checkpoint, name_field)
        asked = asked_of(body, settings, model)
        wanted = replace(asked.wanted, came_at=came_at)
        if isinstance(body, Img2ImgBody):
            wanted = await self._with_pictures(wanted, body)
        generation = await self._desk.submit(wanted, client, request_id(request))
        job = "scripts_img2img" if isinstance(body, Img2ImgBody) else "scripts_txt2img"
        async with aclosing(generation):
            with self._running.listed(client.name, Run(generation.request, job)) as run:
                await run.follow(generation)
        return JSONResponse(await asyncio.to_thread(_answer, body, run, model, asked.warnings))

    async def _with_pictures(self, wanted: Wanted, body: Img2ImgBody) -> Wanted:
        """What is wanted, with the pictures that the body has or names."""
        given = body.init_images or []
        if len(given) != 1:
            raise InvalidRequestError(
                f"init_images: {len(given)} pictures were given; img2img starts from one.", "init_images"
            )
        self._desk.check_room(wanted)
        image = await self._sources.read(_url(given[0]), "init_images")
        mask = await self._sources.read(_url(body.mask), "mask") if body.mask else None
        return replace(wanted, image=image, mask=mask)


def _answer(body: Body, run: Run, model: ServedModel, hints: Sequence[str]) -> Images:
    """In a thread, because half-finished images become files, and finished ones text."""
    results = results_of(run)
    answer: Images = {
        "images": [base64_of(one.image) for one in results] if body.send_images else [],
        "parameters": _parameters(body, run),
        "info": info_of(body, run, results, model),
    }
    if sentences := answer_warnings(run.request, run.encoded, hints):
        answer["warnings"] = sentences
    return answer


def _parameters(body: Body, run: Run) -> dict[str, Any]:
    """The fields of a request, with those that it left to the model as they were."""
    has_pictures = isinstance(body, Img2ImgBody) and body.include_init_images
    # By way of JSON, which has no NaN: fields that are not known may have any value.
    dumped = body.model_dump_json(exclude=None if has_pictures else {"init_images", "mask"})
    fields: dict[str, Any] = json.loads(dumped)
    request = run.request
    used = {
        "sampler_name": sampler_name(request.sampler),
        "steps": request.num_inference_steps,
        "cfg_scale": request.guidance_scale,
        "width": request.width,
        "height": request.height,
    }
    fields |= {name: value for name, value in used.items() if fields[name] is None}
    overridden = fields["override_settings"] or {}
    fields["override_settings"] = {name: one for name, one in overridden.items() if one is not None}
    if isinstance(body, Img2ImgBody) and not has_pictures:
        fields |= {"init_images": None, "mask": None}
    return fields


def _url(picture: str) -> str:
    """A picture in bare base64 as a data URL; others as they are."""
    is_bare = not picture.startswith(("data:", "http://", "https://"))
    return f"data:;base64,{picture}" if is_bare else picture
