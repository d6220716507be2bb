"""Reads the weights of tensors into memory, in the order in which they are in their files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch

from deployments.tensor_files.errors import TensorFileError
from deployments.tensor_files.headers import Header, StoredTensor

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
OnBytes = Callable[[int], None]


class TensorFiles(Protocol):
    """Files with tensors. description: how they are named in messages"""

    @property
    def description(self) -> str: ...

    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def num_bytes(self, names: Collection[str]) -> int: ...

    def read(self, names: Collection[str], on_bytes: OnBytes) -> dict[str, torch.Tensor]: ...


class SafetensorsFiles:
    """One safetensors file, or the shards of one part.

    Weights are read by large reads in the order of the file and not by mapping it into memory, which on
    network mounts takes minutes instead of seconds (ComfyUI's issues 1992 and 8713).
    """

    def __init__(self, headers: Collection[Header], description: str) -> None:
        self.description = description
        self._of = {name: header for header in headers for name in header.tensors}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: header.tensors[name].shape for name, header in self._of.items()}

    def num_bytes(self, names: Collection[str]) -> int:
        stored = [self._of[name].tensors[name] for name in names]
        return sum(tensor.end - tensor.start for tensor in stored)

    def read(self, names: Collection[str], on_bytes: OnBytes) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for path in sorted({self._of[name].path for name in names}):
            here = {name: self._of[name].tensors[name] for name in names if self._of[name].path == path}
            tensors |= _read(path, here, on_bytes)
        return tensors


class PickledFiles:
    """Pickles, read with torch's unpickler that runs no code."""

    def __init__(self, paths: Collection[Path], description: str) -> None:
        self.description = description
        self._tensors: dict[str, torch.Tensor] = {}
        for path in paths:
            try:
                self._tensors |= torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # whatever unpickling raises
                reason = str(error).strip().partition("\n")[0][:200]
                raise TensorFileError(f"{path} cannot be read as a pickle of tensors: {reason}") from error

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def num_bytes(self, names: Collection[str]) -> int:
        return sum(self._tensors[name].nbytes for name in names)

    def read(self, names: Collection[str], on_bytes: OnBytes) -> dict[str, torch.Tensor]:
        on_bytes(self.num_bytes(names))
        return {name: self._tensors[name] for name in names}


def _read(path: Path, stored: Mapping[str, StoredTensor], on_bytes: OnBytes) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    try:
        with path.open("rb", buffering=0) as file:
            for name, place in sorted(stored.items(), key=lambda item: item[1].start):
                tensor = _empty(path, name, place)
                buffer = byte_view(tensor)
                file.seek(place.start)
                done = 0
                while done < len(buffer):
                    count = file.readinto(buffer[done:])
                    if not count:
                        raise TensorFileError(f"{path} is truncated: it ends within {name}. Download it anew")
                    done += count
                    on_bytes(count)
                tensors[name] = tensor.reshape(place.shape)
    except OSError as error:
        raise TensorFileError(f"{path} cannot be read: {error.strerror}") from error
    return tensors


def _empty(path: Path, name: str, place: StoredTensor) -> torch.Tensor:
    if place.dtype not in DTYPES:
        raise TensorFileError(
            f"{path}: {name} is stored as {place.dtype}, a quantised form, which is not served: take the "
            "model's float16 file"
        )
    dtype = DTYPES[place.dtype]
    # A wrong shape may ask for more than all memory.
    if prod(place.shape) * dtype.itemsize != place.end - place.start:
        raise TensorFileError(f"{path} is damaged: {name} has not as many bytes as its shape says")
    return torch.empty(place.shape or (1,), dtype=dtype)


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def read_one(header: Header, name: str) -> torch.Tensor:
    """One tensor of a file, in float32."""
    return _read(header.path, {name: header.tensors[name]}, lambda _: None)[name].float()
