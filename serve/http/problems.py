"""Errors on the wire: one body with RFC 9457 and the fields that OpenAI, Replicate and fal clients read."""

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.errors import (
    InvalidRequestError,
    MethodNotAllowedError,
    MidstepError,
    RouteNotFoundError,
)

logger = logging.getLogger("ray.serve")
USABLE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(request: Request) -> str:
    """The client's own id or the one that Serve's proxy gave; the proxy puts it on the response."""
    if not hasattr(request.state, "request_id"):
        given = request.headers.get("x-request-id", "")
        request.state.request_id = given if USABLE_ID.fullmatch(given) else uuid.uuid4().hex
    identifier: str = request.state.request_id
    return identifier


def error_object(error: MidstepError) -> dict[str, Any]:
    """The error object that the OpenAI client reads, in a body and in the middle of a stream."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"message": error.detail, "type": kind, "param": error.param, "code": error.code}


def problem_response(error: MidstepError, request: Request) -> Response:
    """Makes and counts every error answer of the application."""
    request.app.state.refused.inc(tags={"code": error.code})
    return problem(error, request.url.path)


def problem(error: MidstepError, path: str) -> Response:
    """An error as a response. path: of the request"""
    body = {
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
    return JSONResponse(body, error.status, headers, media_type="application/problem+json")


async def on_midstep_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MidstepError)
    if error.status == 500:
        logger.error("request %s failed: %s", request_id(request), error.detail, exc_info=error)
    return problem_response(error, request)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Turns Starlette's own refusals into our form."""
    assert isinstance(error, HTTPException)
    path, routes = request.url.path, ", ".join(request.app.state.route_paths)
    known: dict[int, MidstepError] = {
        404: RouteNotFoundError(f"There is nothing at {path}. Routes: {routes}."),
        405: MethodNotAllowedError(f"{request.method} is not possible at {path}."),
    }
    response = problem_response(known.get(error.status_code, InvalidRequestError(error.detail)), request)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


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
