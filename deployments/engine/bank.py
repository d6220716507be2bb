"""Adapters side by side on a device, so that every row of a forward may have its own.

The bank is one tensor: a column range for each layer's A and B, a row for each dimension of rank. An adapter
is a block of consecutive rows, so one copy loads it into all layers. A forward gets scales [rows, k]: what
weight each of its rows gives each of the bank's first k rows. Several adapters of a row, of any weights, are
several ranges of scales that are not zero.

A row's bits do not depend on the adapters of other rows: what a row does not use is zero or another
adapter's, always finite, as zero times infinity is NaN. They do depend on the order of the row's own adapters
in the bank.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from deployments.engine.adapters import Target, Weights, padded_rank


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each layer's factors lie in a bank's columns.

    columns: by layer, the first column of A, the first of B, and the end; A may end earlier
    others: the layers outside of a U-Net's transformers, which most adapters leave alone
    """

    columns: Mapping[str, tuple[int, int, int]]
    width: int
    others: frozenset[str] = frozenset()

    @classmethod
    def of(cls, targets: Mapping[str, Target]) -> Layout:
        columns, begin = {}, 0
        for name, target in targets.items():
            middle = _aligned(begin + target.width)
            end = middle + target.num_outputs
            columns[name] = (begin, middle, end)
            begin = _aligned(end)
        transformers = {name for name in targets if ".attentions." in name}
        return cls(columns, begin, frozenset(targets.keys() - transformers if transformers else ()))

    def pack(self, digest: str, rank: int, weights: Weights, dtype: torch.dtype) -> Block:
        """An adapter's weights as the bank takes them. rank: the highest of its layers

        Raises OverflowError if a value is not finite in this dtype.
        """
        rows = torch.zeros(padded_rank(rank), self.width, dtype=dtype)
        for name, factors in weights.items():
            begin, middle, end = self.columns[name]
            own = rows[: len(factors.a)]
            own[:, begin : begin + factors.a.shape[1]] = factors.a
            own[:, middle:end] = factors.b.T
        if not rows.isfinite().all():
            raise OverflowError(f"a value is beyond what {dtype} has")
        return Block(digest, rows, not self.others.isdisjoint(weights))


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """An adapter, packed for a bank.

    rows: [padded rank, the bank's width] on the CPU, pinned for CUDA
    changes_others: whether it changes any of `Layout.others`
    """

    digest: str
    rows: torch.Tensor
    changes_others: bool = False


def _aligned(column: int) -> int:
    """Where a row's values begin at a multiple of 16 bytes, as fast kernels want them."""
    return -(-column // 8) * 8


EMPTY_LAYOUT = Layout({}, 0)  # of a simulated device, which has no values


@dataclass(frozen=True, slots=True)
class RowAdapters:
    """The adapters of some equal rows of a forward: blocks and their scales."""

    num_rows: int
    blocks: Sequence[tuple[Block, float]] = ()


def arrange(held: Mapping[str, range], needed: Mapping[str, int], rank: int) -> dict[str, range]:
    """The rows of the needed adapters, all below `rank`; those that lie well stay.

    held: the rows of the adapters that are there; needed: the rows that each needs, together at most `rank`
    """
    places = {name: held[name] for name in needed if name in held and held[name].stop <= rank}
    for name, size in needed.items():
        if name in places:
            continue
        starts = [0, *(place.stop for place in places.values())]
        fits = [range(start, start + size) for start in sorted(starts) if start + size <= rank]
        place = next((one for one in fits if _is_free(one, places)), None)
        if place is None:
            return _in_a_row(needed)
        places[name] = place
    return places


def _is_free(rows: range, places: Mapping[str, range]) -> bool:
    return all(_is_apart(rows, place) for place in places.values())


def _is_apart(rows: range, others: range) -> bool:
    return rows.stop <= others.start or others.stop <= rows.start


def _in_a_row(needed: Mapping[str, int]) -> dict[str, range]:
    places, begin = {}, 0
    for name, size in needed.items():
        places[name] = range(begin, begin + size)
        begin += size
    return places


@dataclass(frozen=True, slots=True)
class Scales:
    """What weight each row of a forward gives each of the bank's first rows, [rows, rank] float32 on the CPU.

    others: the same for `Layout.others`; of rank 0 if no adapter changes them, so that nothing is computed
    """

    transformers: torch.Tensor
    others: torch.Tensor


@dataclass
class _Active(threading.local):
    """The scales of the forward that runs on this thread, by whether they are for `Layout.others`."""

    scales: dict[bool, torch.Tensor | None] = field(default_factory=lambda: {False: None, True: None})


class DevicePool:
    """Adapters that were used lately in a device's memory, from where they are in a bank in a moment.

    max_bytes: of all of them; 0 for none, as where the device's memory is the host's. They stay in the host's
        memory too
    """

    def __init__(self, device: torch.device, max_bytes: float = 0.0) -> None:
        self._device = device
        self._max_bytes = max_bytes if device.type == "cuda" else 0.0
        self._rows: OrderedDict[Block, torch.Tensor] = OrderedDict()

    def rows(self, block: Block) -> torch.Tensor:
        """A block's rows, in the device's memory if there is room."""
        if block in self._rows:
            self._rows.move_to_end(block)
            return self._rows[block]
        if block.rows.nbytes > self._max_bytes:
            return block.rows
        while sum(rows.nbytes for rows in self._rows.values()) + block.rows.nbytes > self._max_bytes:
            self._rows.popitem(last=False)
        try:
            rows = block.rows.to(self._device, non_blocking=True)
        except torch.OutOfMemoryError:  # others need the memory more
            self.clear()
            return block.rows
        self._rows[block] = rows
        return rows

    def clear(self) -> None:
        """Gives the memory back; what is needed again is copied from the host's."""
        self._rows.clear()


class AdapterBank:
    """The bank of all modules of one architecture, of which one runs at a time.

    max_rank: the most rows that a forward can use; 0 for no adapters
    pool: what was used lately, in the device's memory
    """

    def __init__(
        self,
        layout: Layout,
        max_rank: int,
        device: torch.device,
        dtype: torch.dtype,
        pool: DevicePool | None = None,
    ) -> None:
        self.device = device
        self._layout = layout
        self._dtype = dtype
        # Its address is in captured graphs.
        self._rows = torch.zeros(max_rank, layout.width, device=device, dtype=dtype)
        self._held: dict[str, range] = {}
        self.pool = pool or DevicePool(device)
        self._active = _Active()

    def attach(self, module: nn.Module) -> None:
        """Lets a module's layers read this bank. Their names and weights stay as they are."""
        if not len(self._rows):
            return
        layers = dict(module.named_modules())
        for name, (begin, middle, end) in self._layout.columns.items():
            a, b = self._rows[:, begin:middle], self._rows[:, middle:end]
            is_other = name in self._layout.others
            layers[name].register_forward_hook(_Adds(self._active, is_other, a, b))

    @contextmanager
    def scaled(self, transformers: torch.Tensor, others: torch.Tensor) -> Iterator[None]:
        """Runs a forward with `Scales`, which are on its device, on this thread."""
        for is_other, scales in ((False, transformers), (True, others)):
            self._active.scales[is_other] = scales.to(self._dtype) if scales.shape[1] else None
        try:
            yield
        finally:
            self._active.scales |= {False: None, True: None}

    def load(self, rows: Sequence[RowAdapters], rank: int, in_order: bool = False) -> Scales:
        """Puts all adapters of a forward into the bank.

        rank: at least the rows of all different adapters
        in_order: whether they lie where they would in an empty bank, whatever is there: the order of a row's
            adapters decides about its last bits, and in a wide bank their place does too
        To be called on the thread that launches forwards, so that the copies are behind the forwards that
        still read, in the device's order.
        """
        blocks = {block.digest: block for one in rows for block, _ in one.blocks}
        sizes = {digest: len(blocks[digest].rows) for digest in sorted(blocks)}
        places = _in_a_row(sizes) if in_order else arrange(self._held, sizes, rank)
        assert all(place.stop <= rank for place in places.values()), "the rank is that of all together"
        for digest, place in places.items():
            if self._held.get(digest) != place:
                self._put(blocks[digest], place)
        scales = torch.zeros(sum(one.num_rows for one in rows), rank)
        done = 0
        for one in rows:
            for block, scale in one.blocks:
                place = places[block.digest]
                scales[done : done + one.num_rows, place.start : place.stop] += scale
            done += one.num_rows
        changes_others = any(block.changes_others for block in blocks.values())
        return Scales(scales, scales if changes_others else scales[:, :0])

    def _put(self, block: Block, rows: range) -> None:
        """Copies a block. What lay there is gone from the first moment on, also if there is no memory."""
        self._held.pop(block.digest, None)
        self._held = {name: place for name, place in self._held.items() if _is_apart(rows, place)}
        values = self.pool.rows(block)
        self._rows[rows.start : rows.stop].copy_(values, non_blocking=True)
        self._held[block.digest] = rows


class _Adds:
    """A forward hook of a layer, which adds what the adapters of its rows do.

    a: [max rank, inputs]; b: [max rank, outputs], the layer's columns of the bank
    """

    def __init__(self, active: _Active, is_other: bool, a: torch.Tensor, b: torch.Tensor) -> None:
        self._active = active
        self._is_other = is_other
        self._a = a
        self._b = b

    def __call__(self, layer: Any, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> torch.Tensor:
        scales = self._active.scales[self._is_other]
        if scales is None:
            return outputs
        rank = scales.shape[1]
        if isinstance(layer, nn.Conv2d):
            height, width = layer.kernel_size
            a = self._a[:rank, : layer.in_channels * height * width].reshape(rank, -1, height, width)
            hidden = F.conv2d(inputs[0], a, None, layer.stride, layer.padding)
            scaled = _scaled(hidden, scales[:, :, None, None])
            return outputs + F.conv2d(scaled, self._b[:rank].T.reshape(layer.out_channels, rank, 1, 1))
        hidden = inputs[0] @ self._a[:rank, : layer.in_features].T  # [rows, ..., rank]
        scaled = _scaled(hidden, scales.view(len(scales), *[1] * (hidden.dim() - 2), rank))
        if not outputs.is_contiguous():
            return outputs + scaled @ self._b[:rank]
        # In place: a second tensor of full width would take as much memory traffic again.
        outputs.view(-1, outputs.shape[-1]).addmm_(scaled.reshape(-1, rank), self._b[:rank])
        return outputs


def _scaled(hidden: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Where the scale is 0 there is 0, also where other adapters give values that are not finite."""
    return torch.where(scales == 0, 0.0, hidden * scales)
