"""Adapters in the host's memory, packed for the models that are to use them."""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from deployments.adapters.errors import AdapterChangedError
from deployments.adapters.files import AdapterFileError
from deployments.adapters.reading import read_parts
from deployments.adapters.targets import ModelTargets, targets_of_model
from deployments.engine.adapters import AdapterRef, AdapterUse, padded_rank
from deployments.engine.bank import EMPTY_LAYOUT, Block, Layout
from deployments.engine.model_source import ModelRef, Placement
from deployments.engine.stage_errors import Fault, StageError, broken
from deployments.engine.unet_loader import loading_thread
from deployments.recent import Recent

logger = logging.getLogger("ray.serve")
Result = TypeVar("Result")

UNET = ("unet",)
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_KEPT_REFUSALS = 1000
Packed = Mapping[str, Block]  # by part of the model; only the parts that the adapter changes
_Key = tuple[str, str]  # digests of the file and of the model's layers


class PackedAdapters:
    """Reads adapters when they are first needed, on a thread of its own. For use in one event loop.

    parts: of models, whose weights are read
    max_bytes: of all that are in use or kept for later requests. Requests wait, first come, first served,
        while others use it up; a request that needs more than all of it goes alone
    failed: is told of each adapter that a request could not have
    """

    def __init__(
        self,
        parts: Sequence[str],
        placement: Placement,
        max_bytes: float,
        failed: Callable[[Fault, str], None],
    ) -> None:
        self._failed = failed
        self._parts = parts
        self._placement = placement
        self._max_bytes = max_bytes
        self._kept: OrderedDict[_Key, Packed] = OrderedDict()
        self._users: Counter[_Key] = Counter()
        self._sizes: dict[_Key, int] = {}  # in bytes, of those in use
        self._turn = asyncio.Lock()
        self._freed = asyncio.Condition()
        self._models: dict[str, tuple[ModelTargets, Mapping[str, Layout]]] = {}  # by the model's digest
        self._under_way: dict[_Key, asyncio.Task[Packed]] = {}
        self._refused: Recent[_Key, str] = Recent(_KEPT_REFUSALS)
        self._reading = loading_thread(placement, "adapters")

    @asynccontextmanager
    async def of(self, uses: Iterable[AdapterUse], model: ModelRef) -> AsyncIterator[dict[str, Packed]]:
        """The adapters for a model, by digest, which stay while the caller needs them.

        Raises StageError for one that cannot be used.
        """
        adapters = [use.adapter for use in uses]
        if not adapters or self._placement.is_simulated:
            yield {adapter.digest: self._simulated(adapter) for adapter in adapters}
            return
        targets, layouts = await self._layouts(model)
        sizes = {(one.digest, targets.key): self._num_bytes(one, layouts) for one in adapters}
        async with self._turn, self._freed:
            await self._freed.wait_for(lambda: self._has_room(sizes))
            self._sizes |= sizes
            self._users.update(sizes.keys())
        try:
            yield {one.digest: await self._one(one, targets, layouts) for one in adapters}
        finally:
            self._users.subtract(sizes.keys())
            for key in [key for key in sizes if not self._users[key]]:
                del self._users[key], self._sizes[key]
            self._shrink()
            async with self._freed:
                self._freed.notify_all()

    def _has_room(self, sizes: Mapping[_Key, int]) -> bool:
        return not self._users or sum({**self._sizes, **sizes}.values()) <= self._max_bytes

    def _shrink(self) -> None:
        """Forgets what is not in use, the ones that were used longest ago first, until the rest fits."""
        total = sum(map(_bytes_of, self._kept.values()))
        for key in [key for key in self._kept if key not in self._users]:
            if total <= self._max_bytes:
                return
            total -= _bytes_of(self._kept.pop(key))

    def _simulated(self, adapter: AdapterRef) -> Packed:
        """No values, but as many rows as the adapter has."""
        rank = adapter.unet_rank if self._parts == UNET else adapter.text_rank
        return {part: EMPTY_LAYOUT.pack(adapter.digest, rank, {}, torch.float32) for part in self._parts}

    async def _layouts(self, model: ModelRef) -> tuple[ModelTargets, Mapping[str, Layout]]:
        if model.digest not in self._models:
            targets = await self._on_thread(lambda: targets_of_model(model.source))
            layouts = {part: Layout.of(targets.parts[part]) for part in self._parts if part in targets.parts}
            self._models[model.digest] = targets, layouts
        return self._models[model.digest]

    def _num_bytes(self, adapter: AdapterRef, layouts: Mapping[str, Layout]) -> int:
        """At most, of a packed adapter."""
        rank = padded_rank(adapter.unet_rank if self._parts == UNET else adapter.text_rank)
        return (
            sum(rank * layout.width for layout in layouts.values()) * self._placement.torch_dtype().itemsize
        )

    async def _one(self, adapter: AdapterRef, targets: ModelTargets, layouts: Mapping[str, Layout]) -> Packed:
        key = adapter.digest, targets.key
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if (problem := self._refused.use(key)) is not None:
            raise self._error(_unusable(adapter, problem))
        if key not in self._under_way:
            # A task of its own: it goes on for the others when the caller who began it leaves.
            reading = self._loaded(key, adapter, targets, layouts)
            self._under_way[key] = asyncio.create_task(reading)
        return await asyncio.shield(self._under_way[key])

    async def _loaded(
        self, key: _Key, adapter: AdapterRef, targets: ModelTargets, layouts: Mapping[str, Layout]
    ) -> Packed:
        try:
            packed = await self._on_thread(lambda: self._read(adapter, targets, layouts))
        except (AdapterFileError, OverflowError) as error:
            logger.error("the adapter %s from %s cannot be used: %s", adapter.name, adapter.path, error)
            if not isinstance(error, AdapterChangedError):  # it may come back
                self._refused.keep(key, str(error))
            raise self._error(_unusable(adapter, str(error))) from error
        except Exception as error:
            logger.exception("the adapter %s from %s could not be read", adapter.name, adapter.path)
            raise self._error(broken(error)) from error
        finally:
            del self._under_way[key]
        self._kept[key] = packed
        self._shrink()
        return packed

    def _read(self, adapter: AdapterRef, targets: ModelTargets, layouts: Mapping[str, Layout]) -> Packed:
        dtype = self._placement.torch_dtype()
        is_cuda = self._placement.torch_device().type == "cuda"
        weights = read_parts(Path(adapter.path), adapter.digest, tuple(layouts), targets)
        packed = {}
        for part, of_part in weights.items():
            rank = max(len(factors.a) for factors in of_part.values())
            declared = adapter.unet_rank if part in UNET else adapter.text_rank
            if rank > declared:  # the bank was shared out by what was declared
                raise AdapterFileError(f"it has the rank {rank} in the {part}, and not {declared}")
            block = layouts[part].pack(adapter.digest, rank, of_part, dtype)
            packed[part] = replace(block, rows=block.rows.pin_memory()) if is_cuda else block
        return packed

    def _error(self, error: StageError) -> StageError:
        self._failed(error.fault, error.detail)
        return error

    async def _on_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._reading, work)


def _unusable(adapter: AdapterRef, problem: str) -> StageError:
    return StageError(Fault.ADAPTER, f"The adapter {adapter.name} cannot be used: {problem}.")


def _bytes_of(packed: Packed) -> int:
    return sum(block.rows.nbytes for block in packed.values())
