"""The load generator over real connections to servers with known delays, errors and stalls.

Both use a virtual clock (`virtual_time`), except where the generator itself takes time.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from cluster.bench.answers import Kind, images_in
from cluster.bench.arrivals import constant
from cluster.bench.load import RequestOutcome, Target, run_load
from cluster.bench.mix import Mix, PlannedRequest, plan
from cluster.bench.report import summarize, warnings
from cluster.bench.tasks import Task
from tests import virtual_time

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PICTURE = {"data": [{"b64_json": "AAAA"}]}


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """The URL of a server that answers every POST with the handler."""
    application = web.Application()
    application.router.add_post("/{path:.*}", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def load(
    handler: Handler,
    planned: Sequence[PlannedRequest],
    stream: bool = False,
    timeout_s: float = 30,
    on_outcome: Callable[[RequestOutcome], None] | None = None,
    run: Callable[[Coroutine[Any, Any, list[RequestOutcome]]], list[RequestOutcome]] = virtual_time.run,
) -> list[RequestOutcome]:
    async def under_load() -> list[RequestOutcome]:
        async with serving(handler) as url:
            return await run_load(Target(url, stream=stream), planned, timeout_s, on_outcome)

    return run(under_load())


def requests(rate: float, duration_s: float) -> list[PlannedRequest]:
    return plan(constant(rate, duration_s), Mix(), seed=0)


@pytest.mark.parametrize("key", [None, "mst_secret"])
def test_an_api_key_is_sent_and_not_shown(key: str | None) -> None:
    seen = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers.get("authorization"))
        return web.json_response(PICTURE)

    async def run() -> None:
        async with serving(handler) as url:
            target = Target(url, api_key=key)
            assert "secret" not in repr(target)
            await run_load(target, requests(20, 0.1))

    asyncio.run(run())
    assert seen == [key and f"Bearer {key}"] * 2


def test_a_known_delay_and_error_rate_are_reported_within_two_percent() -> None:
    """150 requests wait at once, more than a client with a limit on connections would send."""
    delay_s, served = 2.0, 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal served
        served += 1
        fails = served % 5 == 0
        await asyncio.sleep(delay_s)
        return web.json_response({"error": "a fault"}, status=500) if fails else web.json_response(PICTURE)

    summary = summarize(load(handler, requests(75, 2)))
    assert summary.counts["server error"] / summary.num_requests == pytest.approx(0.2, rel=0.02)
    assert summary.latency_mean_s == pytest.approx(delay_s, rel=0.02)
    assert summary.latency_p50_s == pytest.approx(delay_s, rel=0.02)
    assert summary.offered_requests_per_s == pytest.approx(75)
    assert summary.images_per_s == pytest.approx(120 / (2 - 1 / 75 + delay_s), rel=0.05)


def test_a_stall_does_not_slow_the_arrivals_and_shows_in_the_latencies() -> None:
    """Nothing is answered from second 0.5 to 1.5. A closed loop would send nothing meanwhile."""
    arrived: list[float] = []

    async def handler(_: web.Request) -> web.Response:
        now = asyncio.get_running_loop().time()
        arrived.append(now)
        since_start = now - arrived[0]
        if 0.495 <= since_start < 1.5:
            await asyncio.sleep(1.5 - since_start)
        return web.json_response(PICTURE)

    outcomes = load(handler, requests(50, 2))
    for outcome, now in zip(outcomes, arrived, strict=True):
        due_s = outcome.request.due_s
        assert now - arrived[0] == pytest.approx(due_s, abs=0.01)
        assert outcome.latency_s == pytest.approx(1.5 - due_s if 0.495 <= due_s < 1.5 else 0, abs=0.01)
    assert summarize(outcomes).latency_p90_s == pytest.approx(0.8, abs=0.02), "half of all waited 0 to 1 s"


def test_a_generator_that_lags_counts_it_as_latency_and_says_so() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(PICTURE)

    outcomes = load(handler, requests(20, 0.5), on_outcome=lambda _: time.sleep(0.1), run=asyncio.run)
    lags = [outcome.lag_s for outcome in outcomes]
    assert max(lags) > 0.1
    assert all(outcome.latency_s >= outcome.lag_s for outcome in outcomes)
    summary = summarize(outcomes)
    assert not summary.trusted
    [warning] = warnings({"slow": [summary]})
    assert "slow at 20.00 requests/s: the generator lagged" in warning


def test_each_way_to_fail_is_counted_as_what_it_is() -> None:
    async def handler(request: web.Request) -> web.Response:
        body = await request.json()
        match body["n"]:
            case 1:
                return web.json_response({"error": "full"}, status=429)
            case 2:
                return web.json_response({}, status=503)
            case 3:
                return web.json_response({}, status=400)
            case 4:
                await asyncio.sleep(1)
            case 5:
                assert request.transport is not None
                request.transport.abort()
            case 6:
                return web.json_response({"data": []})
            case 7:
                return web.json_response({"data": [{}] * 3})
        return web.json_response({}, status=502)

    planned = [PlannedRequest(0, "a star", seed=1, num_images=number) for number in range(1, 9)]
    outcomes = load(handler, planned, timeout_s=0.5)
    assert [outcome.answer.kind for outcome in outcomes] == [
        Kind.BUSY,
        Kind.BUSY,
        Kind.REJECTED,
        Kind.TIMEOUT,
        Kind.TRANSPORT_ERROR,
        Kind.SERVER_ERROR,
        Kind.COMPLETED,
        Kind.SERVER_ERROR,
    ]
    assert outcomes[0].answer.detail == '429 {"error": "full"}'
    assert outcomes[3].latency_s == pytest.approx(0.5, rel=0.02)
    assert outcomes[6].answer.num_images == 3, "what came, not what was asked for"


def test_requests_that_start_from_a_picture_go_to_their_own_route() -> None:
    seen = []

    async def handler(request: web.Request) -> web.Response:
        body = await request.json()
        seen.append((request.path, body.get("strength"), body.get("image", "")[:22], "mask" in body))
        return web.json_response(PICTURE)

    planned = [
        PlannedRequest(0.0, "a star", seed=1),
        PlannedRequest(0.1, "a star", seed=2, task=Task.IMG2IMG, strength=0.5),
        PlannedRequest(0.2, "a star", seed=3, task=Task.INPAINT, strength=1.0),
    ]
    outcomes = load(handler, planned)
    assert seen == [
        ("/v1/images/generations", None, "", False),
        ("/v1/images/edits", 0.5, "data:image/jpeg;base64", False),
        ("/v1/images/edits", 1.0, "data:image/jpeg;base64", True),
    ]
    assert summarize(outcomes).tasks == {"txt2img": 1, "img2img": 1, "inpaint": 1}


def test_a_server_that_is_not_there_is_a_transport_error() -> None:
    [outcome] = asyncio.run(run_load(Target("http://127.0.0.1:1"), requests(1, 1)))
    assert outcome.answer.kind is Kind.TRANSPORT_ERROR
    assert "ClientConnectorError" in outcome.answer.detail


def test_a_stream_tells_when_its_first_preview_came() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert (body["stream"], body["partial_images"]) == (True, 1)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)

        async def send(kind: str, named: bool = True, **fields: str) -> None:
            name = f"event: {kind}\n" if named else ""
            await response.write(f"{name}data: {json.dumps({'type': kind} | fields)}\n\n".encode())

        await response.write(b": a comment\n\n")
        await asyncio.sleep(0.2)
        await send("image_generation.partial_image", b64_json="A" * (3_000_000 if body["n"] == 1 else 3))
        await asyncio.sleep(0.2)
        match body["n"]:
            case 1:
                await send("image_generation.completed", named=False, b64_json="A" * 3_000_000)
                await response.write(b"data: [DONE]\n\n")
            case 2:
                await send("error", error="out of memory")
            case 4:
                assert request.transport is not None
                request.transport.abort()
        return response

    planned = [PlannedRequest(0, "a star", seed=1, num_images=number) for number in (1, 2, 3, 4)]
    done, failed, empty, cut = load(handler, planned, stream=True)
    assert (done.answer.kind, done.answer.num_images) == (Kind.COMPLETED, 1)
    summary = summarize([done])
    assert summary.first_preview_p50_s == pytest.approx(0.2, rel=0.02)
    assert summary.latency_p50_s == pytest.approx(0.4, rel=0.02)
    assert failed.answer.kind is Kind.SERVER_ERROR
    assert "out of memory" in failed.answer.detail
    assert empty.answer.detail == "the stream ended without a picture"
    assert cut.answer.kind is Kind.TRANSPORT_ERROR


@pytest.mark.parametrize(
    ("content", "content_type", "expected"),
    [
        (b'{"data": [{}, {}]}', "application/json", 2),
        (b'{"images": ["a"]}', "application/json", 1),
        (b'{"task": "done"}', "application/json", 4),
        (b"\x89PNG", "image/png", 1),
        (b"ok", "text/plain", 4),
    ],
)
def test_pictures_in_an_answer_are_counted(content: bytes, content_type: str, expected: int) -> None:
    assert images_in(content, content_type, asked=4) == expected


def test_outcomes_are_told_as_they_come_and_returned_in_order() -> None:
    async def handler(request: web.Request) -> web.Response:
        body = await request.json()
        await asyncio.sleep(0.3 if body["n"] == 1 else 0)
        return web.json_response(PICTURE)

    told: Counter[int] = Counter()
    planned = [PlannedRequest(0.05 * number, "a star", number, num_images=number) for number in (1, 2)]
    outcomes = load(handler, planned, on_outcome=lambda outcome: told.update([outcome.request.seed]))
    assert list(told) == [2, 1]
    assert [outcome.request.seed for outcome in outcomes] == [1, 2]
