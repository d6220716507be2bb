"""Counts the memory that code needs on a device by running it on torch's meta device, without a device."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten
# On CUDA these need nothing beside their outputs, other than what torch would make of them here.
_WHOLE = frozenset(
    {_ATEN.scaled_dot_product_attention.default, _ATEN.upsample_nearest2d.vec, _ATEN.dropout.default}
)


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all meta tensors made within it that are there at the same time.

    peak_bytes: the most so far. Tensors that were there before do not count.

    Operations are counted as the simpler ones that torch makes of them on CUDA, convolutions as cuDNN's.
    Kernels' workspaces are not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self._live_bytes = 0
        self._live: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _WHOLE:
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        given = {storage._cdata for storage in _storages((args, kwargs))}
        made, beside_bytes = func(*args, **kwargs), 0
        if func is _ATEN.convolution.default:
            made, beside_bytes = _as_cudnn(made, *args[:2])
        for storage in _storages(made):
            if storage._cdata not in given | self._live:  # a view takes no memory
                self._count(storage)
        self._see(beside_bytes)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        self._live.add(key)
        self._live_bytes += num_bytes
        self._see()
        weakref.finalize(storage, self._gone, key, num_bytes)

    def _see(self, beside_bytes: int = 0) -> None:
        self.peak_bytes = max(self.peak_bytes, self._live_bytes + beside_bytes)

    def _gone(self, key: int, num_bytes: int) -> None:
        self._live.discard(key)
        self._live_bytes -= num_bytes


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    """The storages of the meta tensors in a nested structure."""
    return [
        leaf.untyped_storage()
        for leaf in tree_leaves(tree)
        if isinstance(leaf, torch.Tensor) and leaf.is_meta
    ]


def _as_cudnn(outputs: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A convolution's outputs in cuDNN's memory format, and the bytes of the copy that it makes of inputs.

    cuDNN computes in channels-last if inputs or weight are so (`cudnn_conv_suggest_memory_format`).
    """
    if not any(map(_is_channels_last, (inputs, weight))):
        return outputs, 0 if inputs.is_contiguous() else inputs.nbytes
    is_copied = not inputs.is_contiguous(memory_format=torch.channels_last)
    made = torch.empty_like(outputs, memory_format=torch.channels_last)
    return made, inputs.nbytes if is_copied else 0


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
