"""`GET /metrics`: the metrics that Ray exports on each node's metrics port, at the server's own port."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import aiohttp
import ray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.errors import NotReadyError, RouteNotFoundError
from serve.http.operations import PLAIN_TEXT, Answer, Operation, described

logger = logging.getLogger("ray.serve")

_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_RETRY_AFTER_S = 1
_SHOWN_S = 1.0
_CONTENT_TYPE = f"{PLAIN_TEXT}; version=0.0.4"
_OPERATION = Operation(
    tag="Operation",
    summary="Metrics",
    description="What Ray exports of all its nodes, in Prometheus' text format.",
    answers=(Answer(description="The metrics.", media_types=(PLAIN_TEXT,)),),
    errors=(RouteNotFoundError,),
)


class MetricsRoute:
    """The handler of the route.

    is_on: `http.metrics`; find_nodes: does what `ray.nodes` does
    """

    def __init__(
        self, is_on: bool, find_nodes: Callable[[], Sequence[Mapping[str, Any]]] = ray.nodes
    ) -> None:
        self._is_on = is_on
        self._find_nodes = find_nodes
        self._turn = asyncio.Lock()
        self._text, self._text_until = "", 0.0  # shown until then, by time.monotonic

    @property
    def routes(self) -> list[Route]:
        return [Route("/metrics", self._get)]

    @described(_OPERATION)
    async def _get(self, _: Request) -> Response:
        if not self._is_on:
            raise RouteNotFoundError(
                "There are no metrics here (http.metrics: false). Ray exports them on the metrics port of "
                "each node."
            )
        async with self._turn:  # one look at the nodes for all who ask at once
            if time.monotonic() >= self._text_until:
                self._text = await self._exposition()
                self._text_until = time.monotonic() + _SHOWN_S
        return Response(self._text, media_type=_CONTENT_TYPE)

    async def _exposition(self) -> str:
        """What all nodes export. Raises NotReadyError if that is nothing."""
        nodes = await asyncio.to_thread(self._find_nodes)
        urls = [
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            for node in nodes
            if node["Alive"] and node["MetricsExportPort"] > 0
        ]
        expositions = await _exported(urls)
        if not expositions:
            raise NotReadyError("Ray exports no metrics at the moment.", retry_after_s=_RETRY_AFTER_S)
        return await asyncio.to_thread(merged, expositions)  # in a thread, because there may be megabytes


async def _exported(urls: Sequence[str]) -> list[str]:
    """The expositions of the nodes that answer."""
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:

        async def fetch(url: str) -> str:
            async with session.get(url, raise_for_status=True) as response:
                return await response.text()

        found = await asyncio.gather(*map(fetch, urls), return_exceptions=True)
    texts = []
    for url, result in zip(urls, found, strict=True):
        match result:
            case str():
                texts.append(result)
            case Exception():
                logger.warning("%s has no metrics: %r", url, result)
            case _:
                raise result
    return texts


def merged(expositions: Iterable[str]) -> str:
    """One exposition from several: each metric's header once, and the first value of each series."""
    families: dict[str, dict[str, str]] = {}
    family: dict[str, str] = {}
    for exposition in expositions:
        for line in exposition.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                family = families.setdefault(line.split(" ", 3)[2], {})
                family.setdefault(line[:6], line)
            elif line and not line.startswith("#"):
                family.setdefault(line.rpartition(" ")[0], line)
    return "".join(f"{line}\n" for family in families.values() for line in family.values())
