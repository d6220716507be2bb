"""Reads the bodies of edits: forms with files, or JSON that names pictures."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TypeVar

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from serve.errors import ClientLeftError, InvalidRequestError
from serve.http.body import bounded_body, parse_body, parse_fields
from serve.http.field_names import IMAGE_NAMES, MASK_NAMES
from serve.http.form import opened_form
from serve.http.openai.edit_schema import EditsBody, edit_of, references
from serve.http.picture_sources import PictureSources
from serve.wanted import Wanted, shown

_MAX_FILES = 20  # more than can be of use, so that a sentence says how many can
_MAX_FIELDS = 100
_MAX_FIELD_BYTES = 1 << 18
Schema = TypeVar("Schema", bound=EditsBody)
Files = Mapping[str, Sequence[bytes]]


class EditBodies:
    """sources: reads the pictures that bodies name"""

    def __init__(self, sources: PictureSources) -> None:
        self._sources = sources

    async def read(self, schema: type[Schema], request: Request) -> tuple[Schema, Wanted]:
        """The body, and what it wants with its pictures. Raises InvalidRequestError, which names the field,
        and what the reading of bodies, files and URLs raises."""
        body, files = await self._parsed(schema, request)
        names: dict[str, str] = {}
        image = await self._picture("image", IMAGE_NAMES, body, files, names)
        mask = await self._picture("mask", MASK_NAMES, body, files, names)
        return body, edit_of(body, image, mask, names)

    async def _parsed(self, schema: type[Schema], request: Request) -> tuple[Schema, Files]:
        if not request.headers.get("content-type", "").startswith("multipart/"):
            raw = await bounded_body(request)
            return await asyncio.to_thread(parse_body, schema, raw), {}
        async with opened_form(request, _MAX_FILES, _MAX_FIELDS, _MAX_FIELD_BYTES) as form:
            fields, files = await self._read_form(form)
        return parse_fields(schema, fields), files

    async def _read_form(self, form: FormData) -> tuple[dict[str, str], dict[str, list[bytes]]]:
        """The text fields and the files of a form."""
        fields: dict[str, str] = {}
        files: dict[str, list[bytes]] = {}
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in (*IMAGE_NAMES, *MASK_NAMES):
                    raise InvalidRequestError(f"{shown(name)}: must be a field and not a file.", name[:64])
                self._sources.check_size(value.size or 0, name)
                try:
                    files.setdefault(name, []).append(await value.read())
                except ValueError as error:  # the form is closed
                    raise ClientLeftError("The client left before its picture was read.") from error
            elif name in fields:
                raise InvalidRequestError(f"{shown(name)}: was given twice.", name[:64])
            else:
                fields[name] = value
        return fields, files

    async def _picture(
        self, field: str, known: Sequence[str], body: EditsBody, files: Files, names: dict[str, str]
    ) -> bytes | None:
        """The one picture of a field. known: the field's names; names: gets the one that was used"""
        given = [(name, data) for name in known for data in files.get(name, ())]
        named = references(getattr(body, field))
        names[field] = given[0][0] if given else body.written(field)
        if len(given) + len(named) > 1:
            raise InvalidRequestError(
                f"{names[field]}: {len(given) + len(named)} pictures were given; an edit starts from one.",
                names[field],
            )
        if given:
            return given[0][1]
        return await self._sources.read(named[0], names[field]) if named else None
