"""Client connections. A client that begins a request must finish its headers, or the connection is closed."""

import asyncio
from asyncio.events import TimerHandle

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.errors import InvalidRequestError
from serve.http.limits import HEADERS_TIMEOUT_S
from serve.http.problems import problem


class TimelyProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a time limit for a request's headers. Without it, half a header holds a
    connection for ever. Between two requests `http_options.keep_alive_timeout_s` counts."""

    headers_timeout_s = HEADERS_TIMEOUT_S
    _headers_timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        super().connection_made(transport)
        self._time_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def send_400_response(self, msg: str) -> None:
        """Refuses data that is not HTTP, in the same form as other errors."""
        body = bytes(problem(InvalidRequestError(msg), "").body)
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nx-should-retry: false\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _time_headers(self) -> None:
        is_served = self.cycle is not None and not self.cycle.response_complete
        if is_served or self.transport.get_protocol() is not self:  # now a WebSocket's
            self._stop_timer()
        elif self._headers_timer is None and not self.transport.is_closing():
            self._headers_timer = self.loop.call_later(self.headers_timeout_s, self.transport.close)

    def _stop_timer(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None
