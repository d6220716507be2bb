"""Descriptions of routes, beside their handlers. `serve.http.openapi` makes the document from them.

A handler is decorated with its `Operation`: the types that it parses and makes, and the errors it raises.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from serve.errors import (
    BodyTooLargeError,
    DeadlineExceededError,
    MidstepError,
    NotReadyError,
    RequestTimeoutError,
    UnsupportedEncodingError,
)

Handler = TypeVar("Handler", bound=Callable[..., Any])
Errors = Sequence[type[MidstepError]]

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
PLAIN_TEXT = "text/plain"
FORM = "multipart/form-data"
# Errors of any request, and further errors of requests with a body.
ANYWHERE: Errors = (MidstepError, NotReadyError, DeadlineExceededError)
OF_A_BODY: Errors = (RequestTimeoutError, BodyTooLargeError, UnsupportedEncodingError)
_ATTRIBUTE = "described_operation"
# All red, 64x64 pixels.
EXAMPLE_PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAX0lEQVR4nO3PQQ0AIBDAMMC/50MEj4ZkVbDtWX87OuBV"
    "A1oDWgNaA1oDWgNaA1oDWgNaA1oDWgNaA1oDWgNaA1oDWgNaA1oDWgNaA1oDWgNaA1oDWgNaA1oDWgNaA9oFUoUBf3Xr7AgAAAAASUVORK5CYII="
)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A header, a query parameter or a part of the path. type: in pydantic's form"""

    name: str
    place: Literal["header", "query", "path"]
    description: str
    type: Any = str
    example: Any = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer that is not an error.

    type: of the body, in pydantic's form; None for a body that is not JSON, or for none
    media_types: empty for no body
    events: of an event stream, the type of each event's data by the event's name
    headers: the description of each header
    """

    description: str
    status: int = 200
    type: Any = None
    media_types: Sequence[str] = (JSON,)
    events: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    example: Any = None


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A handler's operation.

    body: the type of the request's body, in pydantic's form; body_media_types: its possible encodings
    form: the type of the body as a form, where it may be JSON as well
    examples: example bodies by name
    errors: errors of the handler, besides ANYWHERE and, with a body, OF_A_BODY
    """

    tag: str
    summary: str
    answers: Sequence[Answer]
    description: str = ""
    parameters: Sequence[Parameter] = ()
    body: Any = None
    body_media_types: Sequence[str] = (JSON,)
    form: Any = None
    examples: Mapping[str, Any] = field(default_factory=dict)
    errors: Errors = ()

    @property
    def all_errors(self) -> Errors:
        return (*self.errors, *(() if self.body is None else OF_A_BODY), *ANYWHERE)


def described(operation: Operation) -> Callable[[Handler], Handler]:
    """Decorates a handler with its operation."""

    def decorate(handler: Handler) -> Handler:
        setattr(handler, _ATTRIBUTE, operation)
        return handler

    return decorate


def operation_of(handler: Callable[..., Any]) -> Operation | None:
    """The handler's operation; None if it has none."""
    found: Operation | None = getattr(handler, _ATTRIBUTE, None)
    return found
