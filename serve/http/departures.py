"""Clients that leave before they are answered. Nobody is at fault, and one line in the log says so."""

import logging

from ray.exceptions import RayError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.ray_internals import keep_calls_from_serve
from serve.wanted import shown

logger = logging.getLogger("ray.serve")


class Departures:
    """ASGI middleware that turns every sign of a departed client into a disconnect for the application.

    When a client leaves, Serve's proxy cancels the request, and with it the call by which this replica waits
    for the proxy's next message. `receive()` then raises TaskCancelledError, sometimes before the request's
    own cancellation arrives. A dying proxy takes its clients with it in the same way.

    The application cancels its calls itself.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        keep_calls_from_serve()
        is_answered = has_left = False

        async def receive_or_leave() -> Message:
            nonlocal has_left
            try:
                message = await receive()
            except RayError:
                message = {"type": "http.disconnect"}
            if message["type"] == "http.disconnect" and not (is_answered or has_left):
                has_left = True
                logger.info("%s %s: the client has left", scope["method"], shown(scope["path"]))
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal is_answered
            await send(message)
            is_answered = message["type"] == "http.response.body" and not message.get("more_body", False)

        await self._app(scope, receive_or_leave, send_and_note)
