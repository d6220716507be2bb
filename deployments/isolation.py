"""Isolation finds out which of the requests under way killed a replica.

1. Any of them may have killed it. So each is sent again isolated: it shares no forward with others.
2. If several isolated requests meet in a replica, they take turns. A stage streams isolated calls. The first
   item of each stream is its `Turn`, sent when its turn has come.
3. The caller now knows that its request comes next. It begins the turn by a second call, `begin_turn` with
   the turn's id. Every call that Serve can make to one particular replica waits behind the requests under
   way there. So all replicas are called, and the replica that gave the turn begins it.
4. The turn ends with the result or, for an image, with its first checkpoint, which is past the fatal step.

So a caller whose replica dies before its turn began is certainly not to blame. serve.calls.failover decides
what follows from deaths.
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

# A caller that has not begun its turn by then may be gone, and all other turns wait for it.
MAX_WAIT_S = 30.0
# A called replica may be busy or gone. This wait holds up only the reading of the call's stream.
MAX_ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class Turn:
    """The first event of an isolated call. Once it is begun, the replica works for that call alone."""

    id: str


class Turns:
    """A replica's turns, one at a time."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._begun: dict[str, asyncio.Event] = {}

    @asynccontextmanager
    async def next(self) -> AsyncIterator[Turn]:
        """Waits for the next turn and holds it until left."""
        async with self._lock:
            turn = Turn(uuid.uuid4().hex)
            self._begun[turn.id] = asyncio.Event()
            try:
                yield turn
            finally:
                del self._begun[turn.id]

    async def begun(self, turn: Turn) -> None:
        """Returns when the caller has begun the turn. Raises TimeoutError if it does not."""
        async with asyncio.timeout(MAX_WAIT_S):
            await self._begun[turn.id].wait()

    def begin(self, turn: Turn) -> None:
        """Begins a turn. Ignores turns that are over and turns of other replicas."""
        if begun := self._begun.get(turn.id):
            begun.set()

    async def isolated(self, work: Callable[[], Awaitable[Result]]) -> AsyncGenerator[Turn | Result, None]:
        """Yields the turn and then the result of `work`."""
        async with self.next() as turn:
            yield turn
            await self.begun(turn)
            yield await work()


async def begin(handle: DeploymentHandle, turn: Turn) -> None:
    """Begins a turn that a replica of the stage gave. If that replica has died, its own stream tells."""
    called = handle.broadcast("begin_turn", turn)
    try:
        await called.results_async(timeout_s=MAX_ANSWER_S, return_exceptions=True)
    except (RayError, TimeoutError) as error:
        logger.warning("not all replicas answered begin_turn: %s", error)
