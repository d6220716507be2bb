"""Reading forms in parts (multipart), bounded."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from serve.errors import BodyTooLargeError, ClientLeftError, InvalidRequestError, StorageFullError
from serve.http.body import check_encoding
from serve.http.limits import MAX_UPLOAD_BYTES
from serve.wanted import shown

_MAX_EPILOGUE = 1024  # bytes that may follow the last boundary


@asynccontextmanager
async def opened_form(
    request: Request, max_files: int, max_fields: int, max_field_bytes: int
) -> AsyncIterator[FormData]:
    """The fields of the form. Large files are on disk until it is left.

    max_field_bytes: of a field that is no file

    Raises BodyTooLargeError as soon as more than MAX_UPLOAD_BYTES have arrived, InvalidRequestError if it is
    not a form, UnsupportedEncodingError, StorageFullError, and ClientLeftError if it never arrived.
    """
    check_encoding(request)
    end = _end_of_form(request.headers.get("content-type", ""))
    num_bytes, last = 0, b""

    async def counted() -> Message:
        nonlocal num_bytes, last
        message = await request.receive()
        chunk = message.get("body", b"")
        num_bytes += len(chunk)
        last = (last + chunk)[-len(end) - _MAX_EPILOGUE :]
        is_complete = b"\r\n" + end in last or last.startswith(end)
        if message["type"] == "http.request" and not message.get("more_body", False) and not is_complete:
            # The parser itself would take what has come so far.
            raise MultiPartException("it ends in the middle of a part.")
        if num_bytes > MAX_UPLOAD_BYTES:
            raise BodyTooLargeError(f"The body is larger than {MAX_UPLOAD_BYTES} bytes.")
        return message

    bounded = Request(request.scope, counted)
    try:
        form = await bounded.form(max_files=max_files, max_fields=max_fields, max_part_size=max_field_bytes)
    except ClientDisconnect as error:
        raise ClientLeftError("The client left before its request was complete.") from error
    except HTTPException as error:
        raise InvalidRequestError(
            f"The body is not a form in parts as it should be: {error.detail}"
        ) from error
    except OSError as error:
        raise StorageFullError(f"The server cannot take the file in: {error.strerror}.") from error
    try:
        yield form
    finally:
        await form.close()


def is_form(content_type: str) -> bool:
    """Whether a body is a form in parts."""
    return parse_options_header(content_type)[0].startswith(b"multipart/")


def _end_of_form(content_type: str) -> bytes:
    """What the last line of the form has to be. Raises InvalidRequestError if it cannot be read."""
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/form-data":
        raise InvalidRequestError(
            f"Content-Type: must be multipart/form-data, but {shown(content_type)} was given.", "Content-Type"
        )
    # Others, such as UTF-7, can say what no answer and no database can.
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise InvalidRequestError(
            f"Content-Type: the charset must be UTF-8, but {shown(content_type)} was given.", "Content-Type"
        )
    return b"--" + options.get(b"boundary", b"") + b"--"
