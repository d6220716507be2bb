"""The denoisers' own statuses, which their replicas are asked for while somebody watches."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ray.exceptions import RayError

from deployments.running_batch import DenoiserStatus
from serve.ray_internals import ask_replica, replica_actor

logger = logging.getLogger("ray.serve")

_WAIT_S = 0.25
_COUNTS_S = 2.0


class DenoiserStatuses:
    """Asks replicas, each at most once at a time, so that calls to one that does not answer do not pile up.

    find, ask: do what `replica_actor` and `ask_replica` do
    """

    def __init__(
        self,
        find: Callable[[str], Any] = replica_actor,
        ask: Callable[[Any, str], Awaitable[DenoiserStatus]] = ask_replica,
    ) -> None:
        self._find = find
        self._ask_replica = ask
        self._actors: dict[str, Any] = {}
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._answers: dict[str, tuple[float, DenoiserStatus]] = {}  # with the event loop's time

    async def read(self, actors: Mapping[str, str]) -> dict[str, DenoiserStatus]:
        """The statuses by replica id, within 0.25 s. actors: the names of the replicas' actors by replica id

        A replica that has not answered by then has its last status, or none if that is two seconds old.
        """
        for replica in self._answers.keys() - actors.keys():
            del self._answers[replica]
            self._actors.pop(replica, None)
        for replica, name in actors.items():
            if replica not in self._calls:
                self._calls[replica] = asyncio.create_task(self._ask(replica, name))
        if calls := [self._calls[replica] for replica in actors]:
            await asyncio.wait(calls, timeout=_WAIT_S)
        oldest = asyncio.get_running_loop().time() - _COUNTS_S
        return {
            replica: self._answers[replica][1]
            for replica in sorted(actors)
            if replica in self._answers and self._answers[replica][0] > oldest
        }

    async def _ask(self, replica: str, name: str) -> None:
        try:
            if replica not in self._actors:
                self._actors[replica] = await asyncio.to_thread(self._find, name)
            status = await self._ask_replica(self._actors[replica], "status")
            self._answers[replica] = asyncio.get_running_loop().time(), status
        except ValueError:  # there is no such actor any more
            pass
        except RayError as error:
            self._actors.pop(replica, None)
            logger.warning("the denoiser %s has not said its status: %r", replica, error)
        finally:
            del self._calls[replica]
