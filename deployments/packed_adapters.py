"""Adapters in the host's memory, packed for the models that are to use them."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from deployments.adapters.files import AdapterFileError
from deployments.adapters.reading import read_weights
from deployments.adapters.targets import ModelTargets, targets_of_model
from deployments.engine.adapters import AdapterRef, AdapterUse
from deployments.engine.bank import EMPTY_LAYOUT, Block, Layout
from deployments.engine.model_source import ModelRef, Placement
from deployments.engine.stage_errors import Fault, StageError, broken

logger = logging.getLogger("ray.serve")
Result = TypeVar("Result")

UNET = ("unet",)
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
Packed = Mapping[str, Block]  # by part of the model; only the parts that the adapter changes


class PackedAdapters:
    """Reads adapters when they are first needed, on a thread of its own. For use in one event loop.

    parts: of models, whose weights are read
    max_bytes: of those that are kept for later requests. A request holds on to its own, so nothing is taken
        away under it
    """

    def __init__(self, parts: Sequence[str], placement: Placement, max_bytes: float) -> None:
        self._parts = parts
        self._placement = placement
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], Packed] = OrderedDict()
        self._targets: dict[str, ModelTargets] = {}  # by the model's digest
        self._under_way: dict[tuple[str, str], asyncio.Task[Packed]] = {}
        # One torch thread, because a second team of OpenMP workers would slow down the engine's.
        self._reading = ThreadPoolExecutor(1, "adapters", torch.set_num_threads, (1,))

    async def of(self, uses: Iterable[AdapterUse], model: ModelRef) -> dict[str, Packed]:
        """The adapters for a model, by digest. Raises StageError for one that cannot be used."""
        return {use.adapter.digest: await self._one(use.adapter, model) for use in uses}

    async def _one(self, adapter: AdapterRef, model: ModelRef) -> Packed:
        if self._placement.is_simulated:
            rank = max(adapter.unet_rank, adapter.text_rank)
            return {part: EMPTY_LAYOUT.pack(adapter.digest, rank, {}, torch.float32) for part in self._parts}
        if model.digest not in self._targets:
            self._targets[model.digest] = await self._on_thread(lambda: targets_of_model(model.source))
        targets = self._targets[model.digest]
        key = adapter.digest, targets.key
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if key not in self._under_way:
            # A task of its own: it goes on for the others when the caller who began it leaves.
            self._under_way[key] = asyncio.create_task(self._loaded(key, adapter, targets))
        return await asyncio.shield(self._under_way[key])

    async def _loaded(self, key: tuple[str, str], adapter: AdapterRef, targets: ModelTargets) -> Packed:
        try:
            packed = await self._on_thread(lambda: self._read(adapter, targets))
        except (AdapterFileError, OverflowError) as error:
            logger.error("the adapter %s from %s cannot be used: %s", adapter.name, adapter.path, error)
            raise StageError(Fault.ADAPTER, f"The adapter {adapter.name} cannot be used: {error}.") from error
        except Exception as error:
            logger.exception("the adapter %s from %s could not be read", adapter.name, adapter.path)
            raise broken(error) from error
        finally:
            del self._under_way[key]
        self._kept[key] = packed
        while len(self._kept) > 1 and sum(map(_num_bytes, self._kept.values())) > self._max_bytes:
            self._kept.popitem(last=False)
        return packed

    def _read(self, adapter: AdapterRef, targets: ModelTargets) -> Packed:
        dtype = self._placement.torch_dtype()
        packed = {}
        for part in self._parts:
            if weights := read_weights(Path(adapter.path), adapter.digest, part, targets):
                rank = max(len(factors.a) for factors in weights.values())
                declared = adapter.unet_rank if part in UNET else adapter.text_rank
                if rank > declared:  # the bank was shared out by what was declared
                    raise AdapterFileError(f"it has the rank {rank} in the {part}, and not {declared}")
                layout = Layout.of(targets.parts[part])
                packed[part] = layout.pack(adapter.digest, rank, weights, dtype)
        return packed

    async def _on_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._reading, work)


def _num_bytes(packed: Packed) -> int:
    return sum(block.rows.nbytes for block in packed.values())
