"""The body of `POST /v1/files`: a multipart form with one file."""

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from pydantic import Field
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from typing_extensions import TypedDict

from serve.errors import ClientLeftError, InvalidRequestError
from serve.jobs.uploads import NewFile
from serve.wanted import shown

MAX_METADATA_BYTES = 1 << 16
MAX_NAME_BYTES = 255
MAX_FIELDS = 100  # some clients send each item of the metadata as a field
_CONTENT_TYPE = re.compile(r"[\w!#$&^.+-]{1,64}/[\w!#$&^.+-]{1,64}(;[\x20-\x7e]{0,100})?", re.ASCII)
_DEFAULT_TYPE = "application/octet-stream"
_METADATA_ITEM = re.compile(r"metadata\[([^\[\]]+)\]")


class UploadForm(TypedDict):
    """The fields of the form."""

    content: Annotated[bytes, Field(description="The file.")]
    filename: NotRequired[str]
    type: NotRequired[Annotated[str, Field(description="Its media type.", examples=["image/png"])]]
    metadata: NotRequired[Annotated[str, Field(description="A JSON object, which comes back with the file.")]]


FIELDS = tuple(UploadForm.__annotations__)


async def read_file(form: FormData, owner: str) -> NewFile:
    """The file of a form. Raises InvalidRequestError, which names the field."""
    content = form.get("content")
    if content is None:
        raise InvalidRequestError("content: is required; it is the file.", "content")
    if not isinstance(content, UploadFile):
        raise InvalidRequestError(
            "content: must be a file, with a `filename` in its Content-Disposition.", "content"
        )
    for field in form:
        if field not in FIELDS and not _METADATA_ITEM.fullmatch(field):
            raise InvalidRequestError(
                f"{shown(field)}: unknown field; known are {', '.join(FIELDS)}.", field[:64]
            )
    name = await _text(form, "filename") or content.filename or "file"
    content_type = await _text(form, "type") or content.content_type or _DEFAULT_TYPE
    metadata = await _metadata(form)
    try:
        data = await content.read()
    except ValueError as error:  # the form is closed
        raise ClientLeftError("The client left before its file was kept.") from error
    return NewFile(owner, _checked_name(name), _checked_type(content_type), metadata, data)


async def _text(form: FormData, field: str) -> str | None:
    """A field's text, even if the client has sent it as a file."""
    value = form.get(field)
    if not isinstance(value, UploadFile):
        return value
    data = await value.read(MAX_METADATA_BYTES + 1)
    if len(data) > MAX_METADATA_BYTES:
        raise InvalidRequestError(f"{field}: is larger than {MAX_METADATA_BYTES} bytes.", field)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{field}: is not UTF-8.", field) from error


async def _metadata(form: FormData) -> Mapping[str, Any]:
    """The client's metadata, either one JSON object or one field per item."""
    items = {
        match[1]: value
        for field, value in form.multi_items()
        if isinstance(value, str) and (match := _METADATA_ITEM.fullmatch(field))
    }
    text = await _text(form, "metadata")
    try:
        metadata = {} if text is None else from_json(text)
        if not isinstance(metadata, dict):
            raise InvalidRequestError(
                f"metadata: must be a JSON object, but {shown(metadata)} was given.", "metadata"
            )
        metadata |= items
        size_bytes = len(json.dumps(metadata, allow_nan=False))  # as in the answer
    except ValueError as error:
        raise InvalidRequestError(f"metadata: is not JSON: {error}.", "metadata") from error
    if size_bytes > MAX_METADATA_BYTES:
        raise InvalidRequestError(f"metadata: is larger than {MAX_METADATA_BYTES} bytes.", "metadata")
    return metadata


def _checked_name(name: str) -> str:
    """The file's name. Raises InvalidRequestError for characters that databases or headers cannot have."""
    forbidden = any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
    if forbidden or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise InvalidRequestError(
            f"filename: must have 1 to {MAX_NAME_BYTES} bytes and no control characters, "
            f"but {shown(name)} was given.",
            "filename",
        )
    return name


def _checked_type(content_type: str) -> str:
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise InvalidRequestError(
            f'type: must be a media type such as "image/png", but {shown(content_type)} was given.', "type"
        )
    return content_type
