"""Isolation: which of the requests that were under way when a replica died had killed it?

1. Any of them may have. So each of them is sent again isolated: it shares no forward with others.
2. Where several isolated requests meet in a replica, they take turns. A stage streams isolated calls, and the
   first item of each is its `Turn`, when that has come.
3. The caller now knows that it will be under way, and begins the turn by a second call, `begin_turn` with the
   turn's id. Serve has no call to one replica that is not held up by what is under way there, so all are
   called; the one that has given that turn begins.
4. The turn ends with the result or, for an image, with its first checkpoint: it has passed what was fatal.

So a caller whose replica dies before it has begun its turn is not to blame, and it knows that for certain.
What it makes of deaths is in serve.calls.failover.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

logger = logging.getLogger("ray.serve")
Result = TypeVar("Result")

# A caller that has not begun its turn by then may be gone; nobody else's turn comes before its end.
MAX_WAIT_S = 30.0
# One of the replicas that are called may be busy or gone. It holds up no more than reading the call's stream.
MAX_ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class Turn:
    """The first event of an isolated call: once this is begun, what the replica does is for that call."""

    id: str


class Turns:
    """A replica's turns, one at a time."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._begun: dict[str, asyncio.Event] = {}

    @asynccontextmanager
    async def next(self) -> AsyncIterator[Turn]:
        """A turn, when it has come, until it is left."""
        async with self._lock:
            turn = Turn(uuid.uuid4().hex)
            self._begun[turn.id] = asyncio.Event()
            try:
                yield turn
            finally:
                del self._begun[turn.id]

    async def begun(self, turn: Turn) -> None:
        """Returns when the caller has begun the turn. Raises TimeoutError for one that does not."""
        async with asyncio.timeout(MAX_WAIT_S):
            await self._begun[turn.id].wait()

    def begin(self, turn: Turn) -> None:
        """Ignores turns that are over, or that another replica has given."""
        if begun := self._begun.get(turn.id):
            begun.set()

    async def isolated(self, work: Callable[[], Awaitable[Result]]) -> AsyncGenerator[Turn | Result, None]:
        """The turn and then what `work` returns."""
        async with self.next() as turn:
            yield turn
            await self.begun(turn)
            yield await work()


async def begin(handle: DeploymentHandle, turn: Turn) -> None:
    """Begins a turn that a replica of the stage has given. Its stream tells if that has died meanwhile."""
    called = handle.broadcast("begin_turn", turn)
    try:
        await called.results_async(timeout_s=MAX_ANSWER_S, return_exceptions=True)
    except (RayError, TimeoutError) as error:
        logger.warning("not all replicas have answered to a turn: %s", error)
