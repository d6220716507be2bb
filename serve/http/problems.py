"""Errors on the wire: one body with RFC 9457 and the fields that OpenAI, Replicate and fal clients read."""

import difflib
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typing_extensions import TypedDict

from serve.errors import InvalidRequestError, MethodNotAllowedError, MidstepError, RouteNotFoundError
from serve.http.methods import allowed_methods

logger = logging.getLogger("ray.serve")
PROBLEM_MEDIA_TYPE = "application/problem+json"
_MAX_PATH_LENGTH = 200  # in an answer
_NEAR = 0.7  # 1 means equal paths
USABLE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class ErrorObject(TypedDict):
    """An error in the form that OpenAI's client reads."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str


class ErrorEvent(TypedDict):
    """The last event of a failed stream."""

    type: Literal["error"]
    error: ErrorObject


class Problem(TypedDict):
    """An error: RFC 9457, and the fields that the dialects' clients read."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: ErrorObject
    error_type: str


def request_id(request: Request) -> str:
    """The client's own id or the one that Serve's proxy gave; the proxy puts it on the response."""
    if not hasattr(request.state, "request_id"):
        given = request.headers.get("x-request-id", "")
        request.state.request_id = given if USABLE_ID.fullmatch(given) else uuid.uuid4().hex
    identifier: str = request.state.request_id
    return identifier


def error_object(error: MidstepError) -> ErrorObject:
    """The error object that the OpenAI client reads, in a body and in the middle of a stream."""
    return {
        "message": error.detail,
        "type": "invalid_request_error" if error.status < 500 else "server_error",
        "param": error.param,
        "code": error.code,
    }


def error_event(error: MidstepError) -> ErrorEvent:
    """The data of a stream's last event."""
    return {"type": "error", "error": error_object(error)}


def problem_response(error: MidstepError, request: Request) -> Response:
    """The answer to an error of a route, counted."""
    request.app.state.refused.inc(tags={"code": error.code})
    return problem(error, request.url.path)


def problem(error: MidstepError, path: str) -> Response:
    """An error as a response. path: of the request"""
    body: Problem = {
        "type": f"urn:midstep:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": path,
        "error": error_object(error),
        "error_type": error.code,
    }
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    elif error.status < 500 or error.status == 504 or error.is_final:
        headers["x-should-retry"] = "false"
    return JSONResponse(body, error.status, headers, media_type=PROBLEM_MEDIA_TYPE)


async def on_midstep_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MidstepError)
    if error.status == 500:
        logger.error("request %s failed: %s", request_id(request), error.detail, exc_info=error)
    return problem_response(error, request)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Turns Starlette's own refusals into our form."""
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            return problem_response(_nothing_there(request), request)
        case 405:
            methods = ", ".join(allowed_methods(request.scope))
            sentence = f"{request.method} is not possible at {request.url.path}; {methods} are."
            response = problem_response(MethodNotAllowedError(sentence), request)
            response.headers["allow"] = methods
            return response
        case _:
            return problem_response(InvalidRequestError(error.detail), request)


def _nothing_there(request: Request) -> RouteNotFoundError:
    path = request.url.path
    if len(path) > _MAX_PATH_LENGTH:
        path = path[: _MAX_PATH_LENGTH - 3] + "..."
    routes = [one for one in request.app.routes if isinstance(one, Route) and one.include_in_schema]
    if (parent := path.rstrip("/")) != path and any(one.path == parent for one in routes):
        return RouteNotFoundError(f"There is nothing at {path}; {parent} is there, and an id may be missing.")
    filled = {_with_parts_of(path, route.path_format): route.path_format for route in routes}
    nearest = difflib.get_close_matches(path, filled, n=1, cutoff=_NEAR)
    hint = f"; the nearest route is {filled[nearest[0]]}" if nearest else ""
    return RouteNotFoundError(f"There is nothing at {path}{hint}. /docs lists all routes.")


def _with_parts_of(path: str, template: str) -> str:
    """The template with a path's parts in place of its parameters, if it has as many."""
    given, parts = path.split("/"), template.split("/")
    if len(given) != len(parts):
        return template
    return "/".join(one if part.startswith("{") else part for one, part in zip(given, parts, strict=True))


async def on_fault(request: Request, error: Exception) -> Response:
    logger.error("request %s failed", request_id(request), exc_info=error)
    return problem_response(
        MidstepError(f"An internal error; see the log under request id {request_id(request)}."), request
    )


EXCEPTION_HANDLERS: Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    MidstepError: on_midstep_error,
    HTTPException: on_http_exception,
    Exception: on_fault,
}
