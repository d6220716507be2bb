"""The edge: an ASGI middleware around Serve's own proxy, in the proxy's process.

Serve's proxy obeys some headers of clients as if a trusted balancer had sent them, before any key is checked,
and its own failures are answered in plain text. We cannot change the proxy, so this middleware runs before
it. `midstep run` and the container image set a variable by which Serve finds `middlewares`. With HAProxy
instead of the proxy, the same middleware runs in the ingress replicas.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
import uvicorn.config
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import (
    DeadlineExceededError,
    MidstepError,
    NotReadyError,
    RequestTimeoutError,
    RouteNotFoundError,
)
from serve.http.limits import BODY_TIMEOUT_S, body_times, max_body_bytes
from serve.http.problems import USABLE_ID, error_object, problem

logger = logging.getLogger("ray.serve")

_MAX_ATTEMPTS = 2
_RETRY_AFTER_S = 1
_SERVES_OWN_PATHS = "/-/"  # health and routes
# Headers that command Serve's proxy: how long a request may take, whether it continues after its client has
# left, which replica gets it. The proxy assumes that their bytes are text, which they need not be.
_ORDERS = {
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"serve-multiplexed-model-id",
    b"x-session-id",
}
_TRACING = {b"traceparent", b"tracestate"}
_REQUEST_ID = b"x-request-id"
_OF_CORS, _ALLOWED_ORIGIN = b"access-control-", b"access-control-allow-origin"

Headers = list[tuple[bytes, bytes]]


def middlewares() -> list[Middleware]:
    """Called by Serve when one of its HTTP servers is about to start."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = "serve.http.connections:TimelyProtocol"
    return [Middleware(Edge)]


class Edge:
    """ASGI middleware. body_timeout_s: for the whole body of a request; one with a file may take longer"""

    def __init__(self, app: ASGIApp, body_timeout_s: float = BODY_TIMEOUT_S) -> None:
        self._app = app
        self._body_timeout_s = body_timeout_s
        self._cors = _Cors()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_OWN_PATHS):
            await self._app(_cleaned(scope), receive, send)
            return
        body_timeout_s = self._body_timeout_s * body_times(scope["path"])
        exchange = _Exchange(_cleaned(scope), receive, send, body_timeout_s, self._cors)
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            await exchange.attempt(self._app)
            if attempt == _MAX_ATTEMPTS or not exchange.may_be_repeated:
                break
            logger.warning("request %s lost its ingress replica; trying once more", exchange.request_id)
        if exchange.has_no_route and not await self._serves_anything():
            exchange.refuse_for_now()
        await exchange.end()

    async def _serves_anything(self) -> bool:
        """Whether Serve's proxy knows a route. It has none at first, and none while `midstep run` ends."""
        transport = httpx.ASGITransport(self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as proxy:
            routes = await proxy.get(f"{_SERVES_OWN_PATHS}routes")
        return routes.status_code == 200 and bool(routes.json())


class _Exchange:
    """A request and its answer, as far as they have come."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, body_timeout_s: float, cors: "_Cors"
    ) -> None:
        self._scope = scope
        self._cors = cors
        self._receive = receive
        self._send = send
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._max_body_bytes = max_body_bytes(scope["path"])
        self._body_deadline = asyncio.get_running_loop().time() + body_timeout_s
        self._leaves_no_trace = _leaves_no_trace(scope, self._headers)
        self._received: list[Message] = []  # kept for a request that may be repeated
        self._num_bytes = 0
        self._has_all = self._has_left = self._is_late = False
        self._start: Message | None = None  # start of the answer, once it has begun
        self._is_complete = False
        self._refusal: MidstepError | None = None  # what Serve's proxy said, in our words

    @property
    def request_id(self) -> str:
        return self._headers[_REQUEST_ID].decode()

    @property
    def may_be_repeated(self) -> bool:
        """Whether there was no answer and a repetition is safe, which it is not for creating a job."""
        is_lost = self._start is None and self._refusal is None and not (self._has_left or self._is_late)
        return is_lost and self._has_all and self._leaves_no_trace

    @property
    def has_no_route(self) -> bool:
        return isinstance(self._refusal, RouteNotFoundError)

    def refuse_for_now(self) -> None:
        self._refusal = NotReadyError("Nothing is served at the moment.", retry_after_s=_RETRY_AFTER_S)

    async def attempt(self, app: ASGIApp) -> None:
        """Runs the application until it has answered or failed."""
        messages = iter(list(self._received))

        async def replayed() -> Message:
            return next(messages, None) or await self._next_message()

        try:
            scope = {**self._scope, "headers": list(self._scope["headers"])}
            await app(scope, replayed, self._forward)
        except asyncio.CancelledError:
            # A replica behind HAProxy ends a request like this if its client has left or its time is over.
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
        except Exception:  # the boundary of a request: its client gets an answer in any case
            if not self._is_complete:  # else the error was logged where the request was answered
                logger.exception("request %s failed before it was answered", self.request_id)

    async def end(self) -> None:
        """Sends the rest of an answer that was not given, or not completely."""
        if self._is_complete or self._has_left:
            return
        if self._start is None:
            await self._refuse(self._problem())
        elif self._scope["method"] == "POST" and _is_event_stream(self._start):
            # Nobody can ask for the rest of such a stream. If it just stopped, it would look complete.
            error = error_object(MidstepError("The stream was cut off by an internal error or a time limit."))
            data = json.dumps({"type": "error", "error": error})
            body = f"event: error\ndata: {data}\n\n".encode()
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _next_message(self) -> Message:
        """The client's next message. After the time for a body, the application hears that the client has
        left.

        Of a body that is too large, no more is read than shows it, however fast it comes.
        """
        if self._has_all:
            message = await self._receive()
        else:
            try:
                async with asyncio.timeout_at(self._body_deadline):
                    if self._num_bytes > self._max_body_bytes:
                        await asyncio.Event().wait()
                    message = await self._receive()
            except TimeoutError:
                self._is_late = True
                return {"type": "http.disconnect"}
        if message["type"] == "http.disconnect":
            self._has_left = True
        else:
            if self._leaves_no_trace:
                self._received.append(message)
            self._num_bytes += len(message.get("body", b""))
            self._has_all = not message.get("more_body", False)
        return message

    async def _forward(self, message: Message) -> None:
        if self._refusal is not None:
            return
        if message["type"] == "http.response.start":
            self._refusal = _in_our_words(message, self._scope["path"])
            if self._refusal is not None:
                return
            self._start = message
            self._received.clear()
            self._cors.learn(message["headers"])
        elif not message.get("more_body", False):
            self._is_complete = True
        await self._send(message)

    def _problem(self) -> MidstepError:
        if self._is_late:
            return RequestTimeoutError("The request's body did not come in time.")
        return self._refusal or NotReadyError(
            "The server lost the request before it had an answer to it. Try again.",
            retry_after_s=_RETRY_AFTER_S,
        )

    async def _refuse(self, error: MidstepError) -> None:
        allowed = self._cors.headers_for(self._headers.get(b"origin"))
        if allowed and (asked := _preflight_headers(self._scope["method"], self._headers)):
            response = Response(status_code=204)  # else the page would never ask, nor hear when to try again
            response.raw_headers += asked
        else:
            response = problem(error, self._scope["path"])
        response.headers["x-request-id"] = self.request_id
        response.raw_headers += allowed
        if not self._has_all:
            response.headers["connection"] = "close"
        await response(self._scope, self._receive, self._send)


class _Cors:
    """The headers that let pages of other origins read an answer, as the application last sent them. The edge
    does not know the application's configuration, and a page that cannot read a 503 cannot know to try
    again."""

    def __init__(self) -> None:
        self._headers: dict[bytes, Headers] = {}  # by origins that the application knows

    def learn(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        found = [(name, value) for name, value in headers if name == b"vary" or name.startswith(_OF_CORS)]
        for name, value in found:
            if name == _ALLOWED_ORIGIN:
                self._headers[value] = found

    def headers_for(self, origin: bytes | None) -> Headers:
        """The headers; empty for an origin that the application has not allowed since this process began."""
        if origin is None:
            return []
        return self._headers.get(origin) or self._headers.get(b"*") or []


def _preflight_headers(method: str, headers: Mapping[bytes, bytes]) -> Headers:
    """The headers that allow what a browser asks for before a page's request; empty if it does not ask."""
    wanted = headers.get(b"access-control-request-method")
    if method != "OPTIONS" or wanted is None:
        return []
    return [
        (b"access-control-allow-methods", wanted),
        (b"access-control-allow-headers", headers.get(b"access-control-request-headers", b"")),
    ]


def _cleaned(scope: Scope) -> Scope:
    """The scope without commands to the proxy, and with exactly one request id, which is safe for a log."""
    headers: Headers = []
    request_id = b""
    for name, value in scope["headers"]:
        plain = name.lower().replace(b"_", b"-")
        if plain == _REQUEST_ID:
            request_id = request_id or (value if _is_usable(value) else b"")
        elif plain not in _ORDERS and not (plain in _TRACING and not value.isascii()):
            headers.append((name, value))
    headers.append((_REQUEST_ID, request_id or uuid.uuid4().hex.encode()))
    return {**scope, "headers": headers}


def _is_usable(request_id: bytes) -> bool:
    return USABLE_ID.fullmatch(request_id.decode("latin-1")) is not None


def _leaves_no_trace(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Whether a request that may already have been done can be repeated."""
    path: str = scope["path"]
    return (
        scope["method"] in ("GET", "HEAD")
        or path.endswith(("/images/generations", "/cancel"))
        or (path.endswith("/predictions") and b"idempotency-key" in headers)
    )


def _in_our_words(start: Message, path: str) -> MidstepError | None:
    """Our form of Serve's own errors. The application sends errors as problems and never in plain text."""
    if start["status"] < 400 or not _content_type(start["headers"]).startswith(b"text/plain"):
        return None
    match start["status"]:
        case 404:
            return RouteNotFoundError(f"There is nothing at {path}.")
        case 408:
            return DeadlineExceededError("A request may not take longer here (http_options).")
        case _:
            return NotReadyError("The server cannot take the request now.", retry_after_s=_RETRY_AFTER_S)


def _is_event_stream(start: Message) -> bool:
    return _content_type(start["headers"]).startswith(b"text/event-stream")


def _content_type(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    types: list[Any] = [value for name, value in headers if name.lower() == b"content-type"]
    return bytes(types[0]) if types else b""
