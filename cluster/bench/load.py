"""The load itself, open loop: a request is sent when it is due, whatever happened to earlier ones.

Every time is in seconds from the start of the run. Latency counts from the moment a request was due. So
neither a stalling server nor a lagging generator can hide the time that a client would have waited
(coordinated omission).
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from cluster.bench.answers import MAX_DETAIL_LENGTH, Answer, Kind, read_answer
from cluster.bench.mix import PlannedRequest
from cluster.bench.template import IMAGES_BODY, PICTURE_SIZE, fill

READ_BUFFER_BYTES = 2**26  # a server-sent event has a whole picture in one line


@dataclass(frozen=True)
class Target:
    """A server. body: a template (see `template`); stream: ask for server-sent events with previews;
    api_key: for a server that needs one

    edit_path: for requests that start from a picture; picture_size: as for `fill`
    """

    url: str
    path: str = "/v1/images/generations"
    body: Mapping[str, Any] = field(default_factory=lambda: IMAGES_BODY)
    stream: bool = False
    partial_images: int = 1
    api_key: str | None = field(default=None, repr=False)
    edit_path: str = "/v1/images/edits"
    picture_size: tuple[int, int] = PICTURE_SIZE

    def body_for(self, request: PlannedRequest) -> bytes:
        asked = {"stream": True, "partial_images": self.partial_images} if self.stream else {}
        return json.dumps(asked | fill(self.body, request, self.picture_size)).encode()

    def url_for(self, request: PlannedRequest) -> str:
        path = self.edit_path if request.task.starts_from_picture else self.path
        return f"{self.url.rstrip('/')}/{path.lstrip('/')}"


@dataclass(frozen=True)
class RequestOutcome:
    """The outcome of a request, and the time when it was sent."""

    request: PlannedRequest
    sent_s: float
    answer: Answer

    @property
    def latency_s(self) -> float:
        return self.answer.ended_s - self.request.due_s

    @property
    def lag_s(self) -> float:
        """How late the generator sent it."""
        return self.sent_s - self.request.due_s


async def run_load(
    target: Target,
    planned: Sequence[PlannedRequest],
    timeout_s: float = 300.0,
    on_outcome: Callable[[RequestOutcome], None] | None = None,
) -> list[RequestOutcome]:
    """Sends each request when it is due, and returns the outcomes in the order of `planned`.

    planned: sorted by due_s; timeout_s: time from due_s after which a request is given up; on_outcome: called
    when a request ends; a slow callback delays the load
    """
    bodies = [target.body_for(request) for request in planned]
    # Each request acts as a separate client: no limit, and no kept connection that the server may be closing.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    session = aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=READ_BUFFER_BYTES
    )
    async with session, asyncio.TaskGroup() as group:
        run = _Run(session, target, timeout_s, on_outcome)
        tasks = []
        for request, body in zip(planned, bodies, strict=True):
            await asyncio.sleep(request.due_s - run.now_s())
            tasks.append(group.create_task(run.send(request, body)))
    return [task.result() for task in tasks]


class _Run:
    """One run against one target. Its clock starts when it is made."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        target: Target,
        timeout_s: float,
        on_outcome: Callable[[RequestOutcome], None] | None,
    ) -> None:
        self._session = session
        self._target = target
        self._timeout_s = timeout_s
        self._on_outcome = on_outcome
        self._start = asyncio.get_running_loop().time()

    def now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._start

    async def send(self, request: PlannedRequest, body: bytes) -> RequestOutcome:
        sent_s = self.now_s()
        try:
            async with asyncio.timeout_at(self._start + request.due_s + self._timeout_s):
                answer = await self._exchange(request, body)
        except TimeoutError:
            answer = Answer(Kind.TIMEOUT, self.now_s(), detail=f"no answer within {self._timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            detail = f"{type(error).__name__}: {error}"[:MAX_DETAIL_LENGTH]
            answer = Answer(Kind.TRANSPORT_ERROR, self.now_s(), detail=detail)
        outcome = RequestOutcome(request, sent_s, answer)
        if self._on_outcome is not None:
            self._on_outcome(outcome)
        return outcome

    async def _exchange(self, request: PlannedRequest, body: bytes) -> Answer:
        url = self._target.url_for(request)
        headers = {"content-type": "application/json"}
        if self._target.api_key:
            headers["authorization"] = f"Bearer {self._target.api_key}"
        async with self._session.post(url, data=body, headers=headers) as response:
            return await read_answer(response, request.num_images, self.now_s)
