"""`/metrics`: the metrics of all nodes in one exposition that Prometheus can read."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from cluster.ports import free_port
from serve.http.metrics import MetricsRoute, merged
from serve.http.problems import EXCEPTION_HANDLERS
from tests.job_stores import in_loop
from tests.unit.test_authentication import Refused

FIRST = """# HELP ray_steps_total Steps.
# TYPE ray_steps_total counter
ray_steps_total{node="a"} 3.0
ray_steps_total{node="both"} 1.0
# HELP ray_rows Rows.
# TYPE ray_rows gauge
ray_rows{node="a"} 2.0
"""
SECOND = """# HELP ray_steps_total Steps.
# TYPE ray_steps_total counter
ray_steps_total{node="both"} 1.0
ray_steps_total{node="b"} 5.0
"""
Node = Mapping[str, Any]


def samples_of(text: str) -> dict[tuple[str, str], float]:
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "each family is there once"
    samples = [sample for family in families for sample in family.samples]
    read = {(sample.name, sample.labels["node"]): sample.value for sample in samples}
    assert len(read) == len(samples), "each series is there once"
    return read


@asynccontextmanager
async def exporter(text: str) -> AsyncIterator[Node]:
    """A node whose exporter answers with the text."""

    async def export(_: web.Request) -> web.Response:
        return web.Response(text=text)

    app = web.Application()
    app.router.add_get("/metrics", export)
    async with TestServer(app, host="127.0.0.1") as server:
        yield {"NodeManagerAddress": "127.0.0.1", "MetricsExportPort": server.port, "Alive": True}


async def get(nodes: Sequence[Node], is_on: bool = True) -> httpx.Response:
    app = Starlette(routes=MetricsRoute(is_on, lambda: nodes).routes, exception_handlers=EXCEPTION_HANDLERS)
    app.state.refused = Refused()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://midstep") as client:
        return await client.get("/metrics")


def test_expositions_are_merged_by_metric() -> None:
    assert samples_of(merged([FIRST, SECOND])) == {
        ("ray_steps_total", "a"): 3,
        ("ray_steps_total", "both"): 1,
        ("ray_steps_total", "b"): 5,
        ("ray_rows", "a"): 2,
    }
    assert merged([FIRST]) == FIRST


@in_loop
async def test_all_nodes_that_live_are_asked_and_one_that_does_not_answer_is_left_out() -> None:
    async with exporter(FIRST) as first, exporter(SECOND) as second:
        silent = {"NodeManagerAddress": "127.0.0.1", "MetricsExportPort": free_port(), "Alive": True}
        dead = {**second, "Alive": False}
        answer = await get([first, silent, second])
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert samples_of(answer.text) == samples_of(merged([FIRST, SECOND]))
        assert samples_of((await get([first, dead])).text) == samples_of(FIRST)


@in_loop
async def test_where_nothing_is_exported_or_wanted_an_error_says_so() -> None:
    silent = {"NodeManagerAddress": "127.0.0.1", "MetricsExportPort": free_port(), "Alive": True}
    away = await get([silent])
    assert (away.status_code, away.json()["error_type"], away.headers["retry-after"]) == (
        503,
        "not_ready",
        "1",
    )
    off = await get([], is_on=False)
    assert (off.status_code, off.json()["error_type"]) == (404, "route_not_found")
    assert "http.metrics: false" in off.json()["detail"]
