"""Waits that end with a request's deadline."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from serve.errors import DeadlineExceededError

Result = TypeVar("Result")


async def until(deadline: float | None, awaitable: Awaitable[Result]) -> Result:
    """Awaits until the deadline, in seconds since the epoch; None for none. Raises DeadlineExceededError."""
    if deadline is None:
        return await awaitable
    try:
        return await asyncio.wait_for(awaitable, max(0.0, deadline - time.time()))
    except TimeoutError as error:
        raise DeadlineExceededError("The request's deadline has passed; its work was stopped.") from error
