"""Reading request bodies: bounded, and parsed into a schema or refused in sentences.

Starlette's own limit answers in plain text, not in the form of our errors.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from heapq import nlargest
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from starlette.requests import ClientDisconnect, Request

from serve.config.schema import models_in
from serve.errors import BodyTooLargeError, ClientLeftError, InvalidRequestError, UnsupportedEncodingError
from serve.http.limits import MAX_BODY_BYTES, max_body_bytes
from serve.wanted import shown

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # RFC 8259 forbids sending it and allows ignoring it
_NEAR = 0.75  # of difflib's 0 to 1: one extra letter, or two swapped ones
# A data URL, or a file in bare base64 as A1111's clients send it; JSON may escape its slashes.
_DATA_URL = re.compile(rb'"(?:data:|[A-Za-z0-9+/\\]{1024})[^"]*"')
_MAX_DATA_URLS = 4  # a picture and a mask, and some to be refused in a sentence
MAX_PROBLEMS = 5  # in one answer; a body may have a hundred thousand


def _printable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain the NUL character")
    return text


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, AfterValidator(_printable)]
# Put it last in an annotation of int: 7.0 is an integer too, in JSON as in JSON Schema.
Whole = BeforeValidator(_whole)


class Body(BaseModel):
    """A JSON object without unknown fields. Some fields have several names (`AliasChoices`, ours first).

    A field that is null counts as absent.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    not_offered: ClassVar[Mapping[str, str]] = {}  # unsupported fields that clients know, with the reasons
    _written: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        known = {*cls.not_offered, *(name for names in _names(cls).values() for name in names)}
        given = {key: value for key, value in data.items() if value is not None or key not in known}
        written: dict[str, str] = {}
        for field, names in _names(cls).items():
            for name in filter(given.__contains__, names):
                first = written.setdefault(field, name)
                if name == first:
                    continue
                if given[name] != given[first]:
                    raise _given_twice(name, given[name], first, given[first])
                del given[name]
        body = handler(given)
        body._written = written
        return body

    def written(self, field: str) -> str:
        """The name by which the client gave a field, or our name if it did not."""
        return self._written.get(field, field)


@cache
def _names(schema: type[BaseModel]) -> Mapping[str, Sequence[str]]:
    """All names of each field, ours first."""
    names = {}
    for name, field in schema.model_fields.items():
        alias = field.validation_alias
        names[name] = [str(one) for one in alias.choices] if isinstance(alias, AliasChoices) else [name]
    return names


def _given_twice(name: str, given: Any, other: str, other_given: Any) -> ValidationError:
    shown_values = {"given": shown(given), "other": other, "other_given": shown(other_given)}
    problem = PydanticCustomError(
        "given_twice", "{given} was given, and {other_given} as {other}; the two are one field", shown_values
    )
    return ValidationError.from_exception_data(name, [{"type": problem, "loc": (name,), "input": given}])


Schema = TypeVar("Schema", bound=Body)


async def bounded_body(request: Request) -> bytes:
    """The body, without a byte order mark.

    Raises BodyTooLargeError as soon as more has arrived than its path allows, UnsupportedEncodingError if it
    is compressed, and ClientLeftError if it never arrived completely.
    """
    check_encoding(request)
    body, most = bytearray(), max_body_bytes(request.url.path)
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise BodyTooLargeError(f"The body is larger than {most} bytes.")
    except ClientDisconnect as error:
        raise ClientLeftError("The client left before its request was complete.") from error
    if body.startswith(_GZIP_MAGIC):
        raise _compressed("The body is gzip.")
    return bytes(body).removeprefix(_BYTE_ORDER_MARK)


def check_encoding(request: Request) -> None:
    """Raises UnsupportedEncodingError if the body is compressed."""
    encoding = request.headers.get("content-encoding", "identity").strip()
    if encoding.lower() not in ("", "identity"):
        raise _compressed(f"Content-Encoding: {shown(encoding)} was given.")


def _compressed(given: str) -> UnsupportedEncodingError:
    return UnsupportedEncodingError(f"{given} Bodies are taken uncompressed only.", "Content-Encoding")


def parse_body(schema: type[Schema], body: bytes) -> Schema:
    """Parses a body. Raises InvalidRequestError, which names the first wrong field and lists more.

    Raises BodyTooLargeError if it is large without its data URLs: a problem takes a hundred times its text.
    """
    if len(body) > MAX_BODY_BYTES:
        of_pictures = nlargest(_MAX_DATA_URLS, (len(found[0]) for found in _DATA_URL.finditer(body)))
        if len(body) - sum(of_pictures) > MAX_BODY_BYTES:
            raise BodyTooLargeError(f"The body is larger than {MAX_BODY_BYTES} bytes without its pictures.")
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(schema, error) from error


def parse_fields(schema: type[Schema], fields: Mapping[str, str]) -> Schema:
    """Parses the fields of a form, where numbers are text. Raises InvalidRequestError like `parse_body`."""
    try:
        return schema.model_validate(fields, strict=False)
    except ValidationError as error:
        raise _refusal(schema, error) from error


def _refusal(schema: type[Body], error: ValidationError) -> InvalidRequestError:
    problems = error.errors(include_url=False)
    messages = [_sentence(schema, problem) for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        messages.append(f"and {len(problems) - MAX_PROBLEMS} problems more")
    return InvalidRequestError("; ".join(messages) + ".", _path(problems[0]["loc"]) or None)


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part)[:64] for part in location)


def _sentence(schema: type[Body], problem: Any) -> str:
    if not problem["loc"]:
        if problem["type"] == "json_invalid":
            return f"The body is not JSON: {problem['ctx']['error']}"
        return f"The body is not a JSON object but {shown(problem['input'])}"
    field = _path(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{field}: {_why_not(_schema_at(schema, problem['loc'][:-1]), str(problem['loc'][-1]))}"
    if problem["type"] == "missing":
        return f"{field}: is required"
    if problem["type"] == "given_twice":
        return f"{field}: {problem['msg']}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{field}: {message[0].lower()}{message[1:]}, but {shown(problem['input'])} was given"


def _schema_at(schema: type[Body], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The schema of the object at a place in the body."""
    found: type[BaseModel] = schema
    for part in location:
        if isinstance(part, str):
            field = next(field for field, names in _names(found).items() if part in names)
            [found] = models_in(found.model_fields[field].annotation)
    return found


def _why_not(schema: type[BaseModel], field: str) -> str:
    """The reason why there is no such field."""
    if issubclass(schema, Body) and field in schema.not_offered:
        return schema.not_offered[field]
    nearest = difflib.get_close_matches(field[:64], schema.model_fields, n=1, cutoff=_NEAR)
    return f"unknown field; the nearest one is {nearest[0]!r}" if nearest else "unknown field"
