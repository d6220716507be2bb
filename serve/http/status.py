"""`GET /v1/status` and `/v1/status/stream`: what runs at the moment."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.calls.live_answers import LiveStatus
from serve.calls.live_status import StatusBoard
from serve.http.event_stream import EventStream
from serve.http.operations import EVENT_STREAM, JSON, Answer, Operation, described

STATUS_PATH = "/v1/status"
_EVENT = "status"
_TAG = "Live status"
_ABOUT = "The replicas, the queue, the throughput, and every image in the denoisers' running batches."
_GET = Operation(
    tag=_TAG,
    summary="Get the live status",
    description=_ABOUT,
    answers=(Answer(description="The status.", type=LiveStatus),),
)
_STREAM = Operation(
    tag=_TAG,
    summary="Follow the live status",
    description=f"{_ABOUT} At once, and then every half second if anything has changed. It ends after ten "
    "minutes, and when the replica that sends it stops; connect again.",
    answers=(
        Answer(
            description="`status`: the whole status.",
            media_types=(EVENT_STREAM,),
            events={_EVENT: LiveStatus},
        ),
    ),
)


class StatusRoutes:
    """The handlers of the routes."""

    def __init__(self, board: StatusBoard) -> None:
        self._board = board

    @property
    def routes(self) -> list[Route]:
        return [Route(STATUS_PATH, self._get), Route(f"{STATUS_PATH}/stream", self._stream)]

    @described(_GET)
    async def _get(self, _: Request) -> Response:
        return Response(await self._board.now(), media_type=JSON)

    @described(_STREAM)
    async def _stream(self, _: Request) -> Response:
        return EventStream(self._events())

    async def _events(self) -> AsyncGenerator[ServerSentEvent, None]:
        async with aclosing(self._board.changes()) as changes:
            async for status in changes:
                yield ServerSentEvent(status, event=_EVENT)
