"""Parts of models that a replica keeps loaded: the ones that were used last."""

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from deployments.engine.device_faults import is_device_fault, is_out_of_memory
from deployments.engine.model_source import ModelRef
from deployments.engine.stage_errors import Fault, StageError, unloadable

logger = logging.getLogger("ray.serve")
Part = TypeVar("Part")


class Shelf(Generic[Part]):
    """Loads a part when it is first needed, on a thread of its own. For use in one event loop.

    load: makes a model's part; key_of: tells parts apart; most: how many there are at once
    first: a model whose part is there already; lost: called with the reason if the device is lost
    """

    def __init__(
        self,
        load: Callable[[ModelRef], Part],
        key_of: Callable[[ModelRef], str],
        most: int,
        loading: ThreadPoolExecutor,
        first: tuple[ModelRef, Part],
        lost: Callable[[str], None],
    ) -> None:
        self._lost = lost
        self._has_room = asyncio.Condition()
        self._turn = asyncio.Lock()  # of loads
        self._load = load
        self._key_of = key_of
        self._most = most
        self._loading = loading
        self._parts: OrderedDict[str, Part] = OrderedDict()
        self._users: Counter[str] = Counter()
        self._under_way: dict[str, asyncio.Task[Part]] = {}
        self._parts[key_of(first[0])] = first[1]

    @asynccontextmanager
    async def part(self, model: ModelRef) -> AsyncIterator[Part]:
        """A model's part, which stays while it is in use. Raises StageError if it cannot be loaded."""
        key = self._key_of(model)
        self._users[key] += 1
        try:
            yield await self._found(key, model)
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                async with self._has_room:
                    self._has_room.notify_all()

    async def _found(self, key: str, model: ModelRef) -> Part:
        if key in self._parts:
            self._parts.move_to_end(key)
            return self._parts[key]
        if key not in self._under_way:
            # A task of its own: it goes on for the others when the caller who began it leaves.
            self._under_way[key] = asyncio.create_task(self._loaded(key, model))
        return await asyncio.shield(self._under_way[key])

    async def _loaded(self, key: str, model: ModelRef) -> Part:
        try:
            async with self._turn:
                await self._make_room()
                began = time.perf_counter()
                part = await asyncio.get_running_loop().run_in_executor(self._loading, self._load, model)
                self._parts[key] = part
        except Exception as error:
            if is_device_fault(error):
                self._lost(f"{type(error).__name__}: {error}")
            logger.exception("the model from %s could not be loaded", model.source.path)
            if is_out_of_memory(error):
                reason = "There is no room for the model on the device."
                raise StageError(Fault.OUT_OF_MEMORY, reason) from error
            raise unloadable() from error
        finally:
            del self._under_way[key]
        seconds = time.perf_counter() - began
        logger.info("loaded a part of the model from %s in %.2f s", model.source.path, seconds)
        return part

    async def _make_room(self) -> None:
        """Waits until a part fits, and forgets the one that was used longest ago."""
        async with self._has_room:
            while len(self._parts) >= self._most:
                unused = [key for key in self._parts if key not in self._users]
                if unused:
                    del self._parts[unused[0]]
                else:
                    await self._has_room.wait()
