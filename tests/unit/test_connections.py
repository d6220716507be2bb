"""Connections to a real uvicorn: half a header does not keep one open, a slow answer does."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from serve.http.connections import TimelyProtocol

TIMEOUT_S = 0.2
Open = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Hasty(TimelyProtocol):
    headers_timeout_s = TIMEOUT_S


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(3 * TIMEOUT_S)
    await PlainTextResponse("done")(scope, receive, send)


@asynccontextmanager
async def serving() -> AsyncIterator[Open]:
    config = uvicorn.Config(
        slow, host="127.0.0.1", port=0, http=Hasty, ws="none", lifespan="off", log_level=50
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 # uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield lambda: asyncio.open_connection("127.0.0.1", port)
    finally:
        server.should_exit = True
        await task


def test_half_a_header_does_not_hold_a_connection() -> None:
    async def run() -> list[bytes]:
        async with serving() as open_connection:
            left = []
            for begun in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\nx-y: "):
                reader, writer = await open_connection()
                writer.write(begun)
                left.append(await reader.read())
                writer.close()
            return left

    assert asyncio.run(run()) == [b"", b"", b""]


def test_neither_a_slow_answer_nor_a_pause_between_requests_ends_one() -> None:
    async def run() -> None:
        async with serving() as open_connection:
            reader, writer = await open_connection()
            for _ in range(2):
                writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert await reader.readexactly(4) == b"done"
                await asyncio.sleep(2 * TIMEOUT_S)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n")
            assert await reader.read() == b""
            writer.close()

    asyncio.run(run())


def test_what_is_no_http_is_refused_as_a_problem() -> None:
    async def run() -> bytes:
        async with serving() as open_connection:
            reader, writer = await open_connection()
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-\xff: 1\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return answer

    head, _, body = asyncio.run(run()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n")
    assert json.loads(body)["error_type"] == "invalid_request"
    assert f"content-length: {len(body)}".encode() in head
