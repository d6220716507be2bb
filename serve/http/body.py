"""Reading request bodies: bounded, and parsed into a schema or refused in sentences.

Starlette's own limit answers in plain text, not in the form of our errors.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request

from serve.config.schema import unknown_keys
from serve.errors import BodyTooLargeError, ClientLeftError, InvalidRequestError, UnsupportedEncodingError
from serve.http.limits import MAX_BODY_BYTES
from serve.served_model import shown

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # RFC 8259 forbids sending it, and allows to overlook it
MAX_PROBLEMS = 5  # told in one answer; a body may hold a hundred thousand


def _printable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain the NUL character")
    return text


Text = Annotated[str, AfterValidator(_printable)]


class Body(BaseModel):
    """A JSON object whose fields are all known."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Schema = TypeVar("Schema", bound=Body)


async def bounded_body(request: Request) -> bytes:
    """The body, without a byte order mark.

    Raises BodyTooLargeError as soon as more than MAX_BODY_BYTES have come, UnsupportedEncodingError for one
    that is compressed, and ClientLeftError where it never came to its end.
    """
    check_encoding(request)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise BodyTooLargeError(f"The body is larger than {MAX_BODY_BYTES} bytes.")
    except ClientDisconnect as error:
        raise ClientLeftError("The client left before its request was complete.") from error
    if body.startswith(_GZIP_MAGIC):
        raise _compressed("The body is gzip.")
    return bytes(body).removeprefix(_BYTE_ORDER_MARK)


def check_encoding(request: Request) -> None:
    """Raises UnsupportedEncodingError for a body that is compressed."""
    encoding = request.headers.get("content-encoding", "identity").strip()
    if encoding.lower() not in ("", "identity"):
        raise _compressed(f"Content-Encoding: {shown(encoding)} was given.")


def _compressed(given: str) -> UnsupportedEncodingError:
    return UnsupportedEncodingError(f"{given} Bodies are taken uncompressed only.", "Content-Encoding")


def parse_body(schema: type[Schema], body: bytes, not_offered: Mapping[str, str]) -> Schema:
    """Raises InvalidRequestError, which names the first field at fault and tells of more.

    not_offered: fields that other servers of the dialect know, each with why this one does not
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    messages = [_sentence(schema, problem, not_offered) for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        messages.append(f"and {len(problems) - MAX_PROBLEMS} problems more")
    raise InvalidRequestError("; ".join(messages) + ".", _path(problems[0]["loc"]) or None)


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part)[:64] for part in location)


def _sentence(schema: type[Body], problem: Any, not_offered: Mapping[str, str]) -> str:
    if not problem["loc"]:
        if problem["type"] == "json_invalid":
            return f"The body is not JSON: {problem['ctx']['error']}"
        return f"The body is not a JSON object but {shown(problem['input'])}"
    field = _path(problem["loc"])
    if problem["type"] == "extra_forbidden":
        if field in not_offered:
            return f"{field}: {not_offered[field]}"
        unknown: Any = None
        for part in reversed(problem["loc"]):
            unknown = {str(part)[:64]: unknown}
        return next(unknown_keys(schema, unknown)).replace("unknown key", "unknown field")
    if problem["type"] == "missing":
        return f"{field}: is required"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{field}: {message[0].lower()}{message[1:]}, but {shown(problem['input'])} was given"
