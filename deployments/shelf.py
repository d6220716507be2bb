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
from deployments.engine.stage_errors import Fault, StageError

logger = logging.getLogger("ray.serve")
Part = TypeVar("Part")


class Shelf(Generic[Part]):
    """Loads a part when it is first needed, on a thread of its own. For use in one event loop.

    load: makes a model's part; key_of: tells parts apart; most: how many are kept beside those in use
    first: a model whose part is there already
    """

    def __init__(
        self,
        load: Callable[[ModelRef], Part],
        key_of: Callable[[ModelRef], str],
        most: int,
        loading: ThreadPoolExecutor,
        first: tuple[ModelRef, Part],
    ) -> None:
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
            self._let_go()

    async def _found(self, key: str, model: ModelRef) -> Part:
        if key in self._parts:
            self._parts.move_to_end(key)
            return self._parts[key]
        if key not in self._under_way:
            # A task of its own: it goes on for the others when the caller who began it leaves.
            self._under_way[key] = asyncio.create_task(self._loaded(key, model))
        return await asyncio.shield(self._under_way[key])

    async def _loaded(self, key: str, model: ModelRef) -> Part:
        began = time.perf_counter()
        try:
            part = await asyncio.get_running_loop().run_in_executor(self._loading, self._load, model)
        except Exception as error:
            if is_device_fault(error):
                raise
            logger.exception("the model from %s could not be loaded", model.source.path)
            fault = Fault.OUT_OF_MEMORY if is_out_of_memory(error) else Fault.UNLOADABLE
            raise StageError(fault, f"The model could not be loaded: {error}") from error
        finally:
            del self._under_way[key]
        self._parts[key] = part
        self._let_go()
        seconds = time.perf_counter() - began
        logger.info("loaded a part of the model from %s in %.2f s", model.source.path, seconds)
        return part

    def _let_go(self) -> None:
        """Forgets the parts that were used longest ago."""
        unused = [key for key in self._parts if not self._users[key]]
        for key in unused[: max(0, len(self._parts) - self._most)]:
            del self._parts[key], self._users[key]
