"""Turns for requests under which a replica died: one at a time, and each says when its turn has come.

Whoever sees the next replica die then knows which of those that waited in it was under way.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from deployments.engine.messages import TurnStarted

Result = TypeVar("Result")

# What TurnStarted needs to reach its reader, who must know of it if the process dies in what comes next.
ANNOUNCEMENT_S = 0.1


async def isolated(
    turn: asyncio.Lock, work: Callable[[], Awaitable[Result]]
) -> AsyncGenerator[TurnStarted | Result, None]:
    """TurnStarted and then what `work` returns. turn: the replica's, for all its isolated requests."""
    async with turn:
        yield TurnStarted()
        await asyncio.sleep(ANNOUNCEMENT_S)
        yield await work()
