"""A runner's repeated tasks. They wait for a database or disk that is unreachable."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from serve.errors import JobStoreUnavailableError, ObjectStoreUnavailableError, StorageFullError
from serve.jobs.news import Audience, News, news_or_timeout

logger = logging.getLogger("ray.serve")

Result = TypeVar("Result")

# These errors pass by themselves: the job waits, or is taken over after its lease.
AWAY = (JobStoreUnavailableError, ObjectStoreUnavailableError, StorageFullError)
_AWAY_INTERVAL_S = 2.0


async def until_it_is_done(action: Callable[[], Awaitable[Result]]) -> Result:
    """Repeats the action until the stores answer, so that a full disk or a database outage fails no job."""
    while True:
        try:
            return await action()
        except AWAY as error:
            logger.warning("jobs: a job is waiting: %s", error.detail)
            await asyncio.sleep(_AWAY_INTERVAL_S)


async def every(interval_s: float, action: Callable[[], Awaitable[object]]) -> None:
    """Runs an action for ever. Outages pass, and a fault of ours must not end other work."""
    while True:
        await attempt(action)
        await asyncio.sleep(interval_s)


async def on_news(
    news: News, event: asyncio.Event, at_most_s: float, action: Callable[[], Awaitable[object]]
) -> None:
    """Runs an action for ever: whenever there is news for runners or the event is set, and at the latest
    after `at_most_s`."""
    with news.listening(Audience.RUNNERS, event):
        while True:
            await attempt(action)
            await news_or_timeout(event, at_most_s)


async def attempt(action: Callable[[], Awaitable[object]]) -> None:
    """Logs the errors of an action. The next round tries again."""
    try:
        await action()
    except AWAY as error:
        logger.warning("jobs: %s", error.detail)
    except Exception:  # the boundary of a loop
        logger.exception("jobs: a round failed")
