"""`/sdapi/v1/progress`, `/interrupt` and `/skip`: of the client's own requests, in this ingress replica."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.http.a1111 import operations
from serve.http.a1111.answers import Progress
from serve.http.a1111.results import base64_of
from serve.http.a1111.running import Running
from serve.http.authentication import client_of
from serve.http.operations import described

_TRUE = ("true", "1", "yes", "on")


class ProgressRoutes:
    """The handlers of the routes."""

    def __init__(self, running: Running) -> None:
        self._running = running

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/sdapi/v1/progress", self._progress),
            Route("/sdapi/v1/interrupt", self._interrupt, methods=["POST"]),
            Route("/sdapi/v1/skip", self._skip, methods=["POST"]),
        ]

    @described(operations.PROGRESS)
    async def _progress(self, request: Request) -> Response:
        client = client_of(request).name
        run = self._running.newest(client)
        is_skipped = request.query_params.get("skip_current_image", "").lower() in _TRUE
        image = None if run is None or is_skipped else run.current_image
        progress: Progress = {
            "progress": 0.0 if run is None else run.progress,
            "eta_relative": 0.0 if run is None else run.seconds_left,
            "state": self._running.idle_state(client) if run is None else run.state,
            "current_image": None if image is None else base64_of(image),
            "textinfo": None,
        }
        return JSONResponse(progress)

    @described(operations.INTERRUPT)
    async def _interrupt(self, request: Request) -> Response:
        self._running.interrupt(client_of(request).name)
        return JSONResponse({})

    @described(operations.SKIP)
    async def _skip(self, request: Request) -> Response:
        if run := self._running.newest(client_of(request).name):
            run.skip()
        return JSONResponse({})
