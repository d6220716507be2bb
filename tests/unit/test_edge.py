"""The edge before Serve's proxy, around stand-ins that behave like the proxy."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from cluster.ray_environment import EDGE, set_ray_environment
from serve.http.edge import Edge, middlewares
from serve.http.limits import MAX_BODY_BYTES, MAX_UPLOAD_BYTES

IMAGES, JOBS, FILES = "/v1/images/generations", "/v1/predictions", "/v1/files"
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Asked:
    """The requests that reached the proxy, and the client's answers."""

    def __init__(self) -> None:
        self.headers: list[dict[bytes, bytes]] = []
        self.bodies: list[bytes] = []
        self.sent: list[Message] = []

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def problem(self) -> dict[str, Any]:
        assert dict(self.sent[0]["headers"])[b"content-type"] == b"application/problem+json"
        parsed: dict[str, Any] = json.loads(self.sent[1]["body"])
        assert parsed["status"] == self.status
        return parsed


async def ask(
    app: App,
    method: str = "POST",
    path: str = IMAGES,
    headers: list[tuple[bytes, bytes]] | None = None,
    body: tuple[bytes, ...] = (b"{}",),
    leaves: bool = False,
    body_timeout_s: float = 60.0,
) -> Asked:
    """body: in parts; leaves: after that has been read"""
    asked = Asked()
    parts = iter(body)
    left = list(body)

    async def receive() -> Message:
        if left:
            left.pop(0)
            part = next(parts)
            return {"type": "http.request", "body": part, "more_body": bool(left)}
        if not leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        asked.sent.append(message)

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        asked.headers.append(dict(scope["headers"]))
        await app(scope, receive, send)

    scope = {"type": "http", "method": method, "path": path, "headers": headers or []}
    await Edge(noting, body_timeout_s)(scope, receive, send)
    return asked


async def whole_body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request", "the client is still there"
        body += message["body"]
        more = message["more_body"]
    return body


async def fine(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(await whole_body(receive))(scope, receive, send)


async def dies(scope: Scope, receive: Receive, send: Send) -> None:
    """Acts like the proxy when the request's replica dies: it sends nothing."""
    await whole_body(receive)


def dies_once() -> App:
    apps = iter([dies, fine])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await next(apps)(scope, receive, send)

    return app


@pytest.mark.parametrize(
    "name",
    [
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve_multiplexed_model_id",
        b"Serve-Multiplexed-Model-Id",
        b"x-session-id",
        b"x_session_id",
    ],
)
@pytest.mark.parametrize("value", [b"?1", b"0.1", b"\xff"])
def test_orders_to_the_proxy_are_taken_off(name: bytes, value: bytes) -> None:
    asked = asyncio.run(ask(fine, headers=[(name, value), (b"x-other", b"\xff")]))
    assert asked.status == 200
    [headers] = asked.headers
    assert set(headers) == {b"x-other", b"x-request-id"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], None),
        ([b"mine-1:2.3_4"], b"mine-1:2.3_4"),
        ([b"a" * 128], b"a" * 128),
        ([b"a" * 129], None),
        ([b"a" * 60_000], None),
        ([b"\xff"], None),
        ([b"a b"], None),
        ([b"a\tINFO forged"], None),
        (["a\u2028forged".encode()], None),
        ([b""], None),
        ([b"\xff", b"second"], b"second"),
        ([b"first", b"second"], b"first"),
    ],
)
def test_a_request_has_one_id_that_is_fit_for_a_log(given: list[bytes], kept: bytes | None) -> None:
    asked = asyncio.run(ask(fine, headers=[(b"x-request-id", value) for value in given]))
    [headers] = asked.headers
    made = headers[b"x-request-id"]
    assert made == kept if kept else (len(made) == 32 and made.isalnum())


def test_tracing_headers_that_are_no_text_are_taken_off() -> None:
    given = [(b"traceparent", b"00-1-2-01"), (b"tracestate", b"\xff")]
    [headers] = asyncio.run(ask(fine, headers=given)).headers
    assert set(headers) == {b"traceparent", b"x-request-id"}


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", IMAGES, []),
        ("POST", f"/prefix{IMAGES}", []),
        ("GET", f"{JOBS}/a", []),
        ("POST", f"{JOBS}/a/cancel", []),
        ("POST", JOBS, [(b"idempotency-key", b"mine")]),
    ],
)
def test_what_was_lost_with_its_replica_is_tried_on_another(
    method: str, path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    asked = asyncio.run(ask(dies_once(), method, path, headers, body=(b"{", b"}")))
    assert (asked.status, asked.sent[1]["body"]) == (200, b"{}")
    first, second = asked.headers
    assert first == second


@pytest.mark.parametrize(
    ("app", "path", "times"), [(dies, IMAGES, 2), (dies_once(), JOBS, 1), (dies_once(), FILES, 1)]
)
def test_what_cannot_be_tried_on_another_is_told_to_come_again(app: App, path: str, times: int) -> None:
    """Nobody knows whether a job was created, and without a replica nothing helps."""
    given = [(b"x-request-id", b"mine"), *([(b"idempotency-key", b"a")] if path == FILES else [])]
    asked = asyncio.run(ask(app, path=path, headers=given))
    assert len(asked.headers) == times
    assert (asked.status, asked.problem["error_type"]) == (503, "not_ready")
    headers = dict(asked.sent[0]["headers"])
    assert headers[b"retry-after"] == b"1"
    assert headers[b"x-request-id"] == b"mine"


def test_a_fault_of_the_proxy_is_answered_in_our_form() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    asked = asyncio.run(ask(fails, path=JOBS))
    assert (asked.status, asked.problem["error_type"]) == (503, "not_ready")


ROUTES = JSONResponse({"/sd15": "sd15"})


@pytest.mark.parametrize(
    ("status", "routes", "answered", "code"),
    [
        (404, ROUTES, 404, "route_not_found"),
        (404, JSONResponse({}), 503, "not_ready"),
        (404, PlainTextResponse("NO ROUTES", 503), 503, "not_ready"),
        (408, ROUTES, 504, "deadline_exceeded"),
        (503, ROUTES, 503, "not_ready"),
    ],
)
def test_what_the_proxy_says_itself_is_said_in_our_form(
    status: int, routes: Response, answered: int, code: str
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/-/routes":
            await routes(scope, receive, send)
            return
        await PlainTextResponse("Serve's own words", status)(scope, receive, send)
        raise asyncio.CancelledError  # like a replica behind HAProxy

    asked = asyncio.run(ask(app))
    assert (asked.status, asked.problem["error_type"]) == (answered, code)


def test_serves_own_paths_are_left_to_it() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("DRAINING", 503)(scope, receive, send)

    asked = asyncio.run(ask(app, "GET", "/-/healthz"))
    assert (asked.status, asked.sent[1]["body"]) == (503, b"DRAINING")


@pytest.mark.parametrize(("method", "ends"), [("POST", True), ("GET", False)])
def test_a_stream_that_is_cut_says_so_unless_its_rest_can_be_asked_for(method: str, ends: bool) -> None:
    async def cut(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})

    asked = asyncio.run(ask(cut, method))
    assert len(asked.headers) == 1, "it is not tried again"
    last = asked.sent[-1]
    assert last["more_body"] is not ends
    if ends:
        event, data, *_ = last["body"].decode().split("\n")
        assert event == "event: error"
        assert json.loads(data.removeprefix("data: "))["error"]["code"] == "internal_error"


def test_one_that_has_left_gets_nothing() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await whole_body(receive)
        assert (await receive())["type"] == "http.disconnect"

    asked = asyncio.run(ask(app, leaves=True))
    assert asked.sent == []
    assert len(asked.headers) == 1


def test_a_body_that_does_not_come_in_time_is_not_waited_for() -> None:
    told: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not told or told[-1]["type"] == "http.request":
            told.append(await receive())

    async def run() -> Asked:
        sent: list[Message] = []
        parts = iter([{"type": "http.request", "body": b"{", "more_body": True}])

        async def receive() -> Message:
            if (part := next(parts, None)) is None:
                await asyncio.Event().wait()
            assert part is not None
            return part

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": IMAGES, "headers": []}
        await Edge(app, body_timeout_s=0.05)(scope, receive, send)
        asked = Asked()
        asked.sent = sent
        return asked

    asked = asyncio.run(run())
    assert [message["type"] for message in told] == ["http.request", "http.disconnect"]
    assert (asked.status, asked.problem["error_type"]) == (408, "request_timeout")
    assert dict(asked.sent[0]["headers"])[b"connection"] == b"close"


@pytest.mark.parametrize(("path", "limit"), [(IMAGES, MAX_BODY_BYTES), (FILES, MAX_UPLOAD_BYTES)])
def test_of_a_body_that_is_too_large_no_more_is_taken_in(path: str, limit: int) -> None:
    """The application refuses it. Data that it has not asked for must not pile up in the proxy."""
    taken: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def pull() -> None:
            while True:
                taken.append(len((await receive())["body"]))

        pulling = asyncio.create_task(pull())
        for _ in range(5000):  # turns of the event loop; each part takes a few
            await asyncio.sleep(0)
        pulling.cancel()
        await PlainTextResponse("too large", 200)(scope, receive, send)

    asked = asyncio.run(ask(app, path=path, body=(b" " * 65536,) * 1000))
    assert asked.status == 200
    assert limit < sum(taken) <= limit + 65536


def test_serve_finds_it_by_the_environment_unless_something_else_is_there() -> None:
    [(name, path)] = EDGE.items()
    module, _, function = path.partition(":")
    assert (module, function) == (middlewares.__module__, middlewares.__name__)
    [middleware] = middlewares()
    assert middleware.cls is Edge
    environment = {"OMP_WAIT_POLICY": "ACTIVE"}
    set_ray_environment(environment)
    assert environment.items() >= {name: path, "OMP_WAIT_POLICY": "ACTIVE"}.items()


def test_pages_that_the_application_lets_read_its_answers_can_read_refusals_too() -> None:
    allowed = {"access-control-allow-origin": "https://page.example", "vary": "Origin"}
    answers = iter([PlainTextResponse("fine", headers=allowed), PlainTextResponse("not for pages")])
    asked = [
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", b"authorization"),
    ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if answer := next(answers, None):
            await answer(scope, receive, send)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def starts() -> list[dict[str, str]]:
        edge, sent = Edge(app), []

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent.append({name.decode(): value.decode() for name, value in message["headers"]})

        for method, more in (("GET", []), ("GET", []), ("OPTIONS", asked)):
            for origin in (b"https://page.example", b"https://other.example"):
                headers = [(b"origin", origin), *more]
                await edge(
                    {"type": "http", "method": method, "path": "/x", "headers": headers}, receive, send
                )
        return sent

    _, _, refused, refused_other, preflight, preflight_of_other = asyncio.run(starts())
    assert allowed.items() <= preflight.items()
    assert preflight["access-control-allow-methods"] == "POST"
    assert preflight["access-control-allow-headers"] == "authorization"
    assert preflight_of_other["content-type"] == "application/problem+json"
    assert refused["content-type"] == refused_other["content-type"] == "application/problem+json"
    assert allowed.items() <= refused.items()
    assert "access-control-allow-origin" not in refused_other
