"""Reads the bodies of edits: forms with files, or JSON that names pictures."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from serve.errors import ClientLeftError, InvalidRequestError
from serve.http.body import bounded_body, parse_body, parse_fields
from serve.http.field_names import IMAGE_NAMES, MASK_NAMES
from serve.http.form import is_form, opened_form
from serve.http.form_lists import gathered_loras, is_lora_part
from serve.http.limits import MAX_UPLOAD_BYTES
from serve.http.openai.edit_schema import EditsBody, edit_of
from serve.http.picture_sources import PictureSources
from serve.wanted import Wanted, shown

_MAX_FILES = 20  # more than can be of use, so that a sentence says how many can
_MAX_FIELDS = 100
_MAY_BE_EMPTY = ("prompt", "negative_prompt")
Schema = TypeVar("Schema", bound=EditsBody)
Files = Mapping[str, Sequence[bytes]]


class EditBodies:
    """sources: reads the pictures that bodies name; check: refuses what needs no picture to be refused"""

    def __init__(self, sources: PictureSources, check: Callable[[Wanted], None]) -> None:
        self._sources = sources
        self._check = check

    async def read(self, schema: type[Schema], request: Request) -> tuple[Schema, Wanted]:
        """The body, and what it wants with its pictures. Raises InvalidRequestError, which names the field,
        and what the reading of bodies, files and URLs raises."""
        came_at = time.time()
        body, files = await self._parsed(schema, request)
        wanted = replace(edit_of(body), came_at=came_at)
        self._check(wanted)
        image_name, image = await self._picture("image", IMAGE_NAMES, body, files)
        mask_name, mask = await self._picture("mask", MASK_NAMES, body, files)
        if image is None:
            raise InvalidRequestError(
                f"{image_name}: is required; it is the picture to start from.", image_name
            )
        names = {**wanted.names, "image": image_name, "mask": mask_name}
        return body, replace(wanted, image=image, mask=mask, names=names)

    async def _parsed(self, schema: type[Schema], request: Request) -> tuple[Schema, Files]:
        if not is_form(request.headers.get("content-type", "")):
            raw = await bounded_body(request)
            return await asyncio.to_thread(parse_body, schema, raw), {}
        async with opened_form(request, _MAX_FILES, _MAX_FIELDS, MAX_UPLOAD_BYTES) as form:
            fields, files = await self._read_form(form)
        return await asyncio.to_thread(parse_fields, schema, fields), files

    async def _read_form(self, form: FormData) -> tuple[dict[str, str], dict[str, list[bytes]]]:
        """The text fields and the files of a form."""
        fields: dict[str, str] = {}
        files: dict[str, list[bytes]] = {}
        loras: list[tuple[str, str]] = []
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in (*IMAGE_NAMES, *MASK_NAMES):
                    pictures = f"files are image and mask, and {shown(name)} was given"
                    raise InvalidRequestError(f"{name[:64]}: {pictures}.", name[:64])
                self._sources.check_size(value.size or 0, name)
                try:
                    files.setdefault(name, []).append(await value.read())
                except ValueError as error:  # the form is closed
                    raise ClientLeftError("The client left before its picture was read.") from error
            elif is_lora_part(name):
                loras.append((name, value))
            elif name in fields:
                raise _given_twice(name)
            elif value or name in _MAY_BE_EMPTY:  # browsers send every field of a form
                fields[name] = value
        for name, value in gathered_loras(loras).items():
            if fields.setdefault(name, value) != value:
                raise _given_twice(name)
        return fields, files

    async def _picture(
        self, field: str, known: Sequence[str], body: EditsBody, files: Files
    ) -> tuple[str, bytes | None]:
        """The one picture of a field, and the name by which it was given. known: the field's names"""
        given = [(name, data) for name in known for data in files.get(name, ())]
        urls = getattr(body, field) or []
        name = given[0][0] if given else body.written(field)
        if len(given) + len(urls) > 1:
            raise InvalidRequestError(
                f"{name}: {len(given) + len(urls)} pictures were given; an edit starts from one.", name
            )
        if given:
            return name, given[0][1]
        return name, await self._sources.read(urls[0], name) if urls else None


def _given_twice(name: str) -> InvalidRequestError:
    return InvalidRequestError(f"{shown(name)}: was given twice.", name[:64])
