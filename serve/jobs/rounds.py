"""What a runner does again and again, and what it waits for: a database or a disk that is away comes back."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from serve.errors import JobStoreUnavailableError, ObjectStoreUnavailableError, StorageFullError
from serve.jobs.news import Audience, News, news_or_timeout

logger = logging.getLogger("ray.serve")

Result = TypeVar("Result")

# What passes by itself: the job waits, or is taken over when its lease has run out.
AWAY = (JobStoreUnavailableError, ObjectStoreUnavailableError, StorageFullError)
_AWAY_INTERVAL_S = 2.0


async def until_it_is_done(action: Callable[[], Awaitable[Result]]) -> Result:
    """No job fails and nothing is made twice because a disk is full or a database away: it waits here."""
    while True:
        try:
            return await action()
        except AWAY as error:
            logger.warning("jobs: one waits, since %s", error.detail)
            await asyncio.sleep(_AWAY_INTERVAL_S)


async def every(interval_s: float, action: Callable[[], Awaitable[object]]) -> None:
    """For ever: what is away comes back, and a fault of ours must not end the others' work."""
    while True:
        await attempt(action)
        await asyncio.sleep(interval_s)


async def on_news(
    news: News, event: asyncio.Event, at_most_s: float, action: Callable[[], Awaitable[object]]
) -> None:
    """Runs an action for ever: whenever there is news for runners or the event is set, and at the latest
    after that time."""
    with news.listening(Audience.RUNNERS, event):
        while True:
            await attempt(action)
            await news_or_timeout(event, at_most_s)


async def attempt(action: Callable[[], Awaitable[object]]) -> None:
    """Logs what goes wrong with an action: the next round tries again."""
    try:
        await action()
    except AWAY as error:
        logger.warning("jobs: %s", error.detail)
    except Exception:  # the boundary of a loop
        logger.exception("jobs: a round failed")
