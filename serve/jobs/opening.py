"""Opens the job store for as long as it is needed."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve.errors import JobStoreUnavailableError
from serve.jobs.store import JobStore

logger = logging.getLogger("ray.serve")
_WAIT_S = 10.0
_INTERVAL_S = 2.0


@asynccontextmanager
async def opened(store: JobStore) -> AsyncIterator[JobStore]:
    """Opens the store as soon as its database answers. Until then it raises JobStoreUnavailableError."""
    opening = asyncio.create_task(_open(store))
    try:
        await asyncio.wait({opening}, timeout=_WAIT_S)
        yield store
    finally:
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await store.close()


async def _open(store: JobStore) -> None:
    while True:
        try:
            return await store.open()
        except JobStoreUnavailableError:
            logger.warning("the job store does not answer; trying again")
            await asyncio.sleep(_INTERVAL_S)
        except Exception:  # the boundary of a task that nobody waits for
            logger.exception("the job store cannot be opened; trying again")
            await asyncio.sleep(_INTERVAL_S)
