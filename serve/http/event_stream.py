"""Server-sent events in the form that all dialects use."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any, Protocol

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_PING_INTERVAL_S = 15


class Closable(Protocol):
    async def aclose(self) -> Any: ...


class EventStream(EventSourceResponse):
    """Sends the events. However that ends, it closes their generator and then the sources."""

    def __init__(self, events: AsyncGenerator[ServerSentEvent, None], *sources: Closable) -> None:
        super().__init__(events, ping=_PING_INTERVAL_S, sep="\n")
        self._closed_at_the_end = (*sources, events)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            for closable in self._closed_at_the_end:
                stack.push_async_callback(closable.aclose)
            if scope["method"] == "HEAD":
                await Response(headers=self.headers)(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)
