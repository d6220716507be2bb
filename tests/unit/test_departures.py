"""Clients that leave in the middle of a request or of a stream, by disconnect or by Serve's cancellation."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
from ray.exceptions import TaskCancelledError
from ray.serve.context import _get_serve_request_context, _set_request_context
from sse_starlette import ServerSentEvent
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from serve.errors import MidstepError
from serve.http.body import bounded_body
from serve.http.departures import Departures
from serve.http.event_stream import EventStream
from serve.http.problems import on_fault, on_midstep_error


class Refused(Counter[str]):
    """Replaces the metric; counts by code."""

    def inc(self, tags: Mapping[str, str]) -> None:
        self[tags["code"]] += 1


def disconnected() -> Any:
    return {"type": "http.disconnect"}


def canceled() -> Any:
    """Acts like Serve when the proxy cancels the request: the wait for messages is canceled too."""
    raise TaskCancelledError


class Visit:
    """One request to an application with two routes, by a client that leaves."""

    def __init__(self) -> None:
        self.left: list[str] = []
        self.sent: list[Any] = []
        self.begun = asyncio.Event()
        handlers: dict[Any, Any] = {MidstepError: on_midstep_error, Exception: on_fault}
        self.app = Starlette(
            routes=[Route("/body", self._body, methods=["POST"]), Route("/stream", self._stream)],
            middleware=[Middleware(Departures)],
            exception_handlers=handlers,
        )
        self.refused = self.app.state.refused = Refused()

    async def _body(self, request: Request) -> Response:
        return PlainTextResponse(await bounded_body(request))

    async def _stream(self, _: Request) -> Response:
        source = AsyncExitStack()
        source.callback(self.left.append, "source")
        return EventStream(self._events(), source)

    async def _events(self) -> AsyncGenerator[ServerSentEvent, None]:
        try:
            yield ServerSentEvent("1")
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            self.left.append("events")

    async def make(self, method: str, path: str, *receive: Any) -> None:
        """receive: messages, and events to wait for; a callable returns a message or raises"""
        coming = iter(receive)

        async def next_message() -> Any:
            message = next(coming)
            if isinstance(message, asyncio.Event):
                await message.wait()
                message = next(coming)
            return message() if callable(message) else message

        async def send(message: Any) -> None:
            self.sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": []}
        await self.app(scope, next_message, send)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "propagate", True)  # Serve may have turned it off
    caplog.set_level(logging.INFO, logger.name)
    return caplog


@pytest.mark.parametrize("leaving", [disconnected, canceled])
def test_one_that_leaves_a_stream_is_one_quiet_line(leaving: Any, log: pytest.LogCaptureFixture) -> None:
    async def run() -> Visit:
        visit = Visit()
        await visit.make("GET", "/stream", visit.begun, leaving)
        return visit

    visit = asyncio.run(run())
    assert visit.left == ["events", "source"]
    assert [message["type"] for message in visit.sent][:2] == ["http.response.start", "http.response.body"]
    [record] = log.records
    assert record.levelno == logging.INFO
    assert record.getMessage() == "GET '/stream': the client has left"
    assert not record.exc_info


@pytest.mark.parametrize("leaving", [disconnected, canceled])
def test_one_that_leaves_in_the_middle_of_its_body_is_counted_as_that(
    leaving: Any, log: pytest.LogCaptureFixture
) -> None:
    async def run() -> Visit:
        visit = Visit()
        part = {"type": "http.request", "body": b'{"prompt"', "more_body": True}
        await visit.make("POST", "/body", part, leaving)
        return visit

    assert asyncio.run(run()).refused == {"client_left": 1}
    [record] = log.records
    assert (record.levelno, record.getMessage()) == (logging.INFO, "POST '/body': the client has left")


def test_its_path_cannot_forge_a_line(log: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def leave() -> None:
        async def receive() -> Any:
            return disconnected()

        async def send(_: Any) -> None: ...

        scope = {"type": "http", "method": "GET", "path": "/\r\nforged" + "a" * 5000}
        await Departures(app)(scope, receive, send)

    asyncio.run(leave())
    [record] = log.records
    assert record.getMessage().startswith("GET '/\\r\\nforgedaaa")
    assert len(record.getMessage()) < 100


def test_one_that_stays_is_no_line(log: pytest.LogCaptureFixture) -> None:
    async def run() -> Visit:
        visit = Visit()
        await visit.make("POST", "/body", {"type": "http.request", "body": b"all", "more_body": False})
        return visit

    start, body = asyncio.run(run()).sent
    assert (start["status"], body["body"]) == (200, b"all")
    assert not log.records


def test_its_calls_are_not_canceled_by_serve() -> None:
    """Serve cancels those that it finds under the internal id of the client's request."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(_get_serve_request_context())

    async def visit() -> None:
        _set_request_context(request_id="mine", route="/route", _internal_request_id="of the request")
        await Departures(app)({"type": "http"}, None, None)  # type: ignore[arg-type]

    asyncio.run(visit())
    [context] = seen
    assert (context.request_id, context.route) == ("mine", "/route")
    assert context._internal_request_id not in ("", "of the request")
