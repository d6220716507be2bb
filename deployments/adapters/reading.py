"""Reads an adapter's weights, in one pass over its file."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Collection, Mapping
from math import isfinite
from pathlib import Path

import torch

from deployments.adapters.composing import low_rank
from deployments.adapters.errors import AdapterChangedError, AdapterFileError, listed
from deployments.adapters.files import digest_of
from deployments.adapters.layers import Layer
from deployments.adapters.resolving import MAX_BYTES, open_adapter
from deployments.adapters.targets import ModelTargets
from deployments.engine.adapters import LowRank, Weights
from deployments.tensor_files.headers import Header
from deployments.tensor_files.weights import DTYPES, byte_view

__all__ = ["AdapterChangedError", "AdapterFileError", "digest_of", "read_parts", "read_weights"]

_CHUNK_BYTES = 1 << 20
_INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}


def read_weights(path: Path, digest: str, part: str, model: ModelTargets) -> Weights:
    """As `read_parts`, of one part; empty if it adds nothing there."""
    return read_parts(path, digest, (part,), model).get(part, {})


def read_parts(path: Path, digest: str, parts: Collection[str], model: ModelTargets) -> dict[str, Weights]:
    """What the adapter adds to the layers of these parts, in float32 on the CPU, by part and then by layer.

    digest: SHA-256 of the file's content. parts: of unet, text_encoder and text_encoder_2
    Raises AdapterFileError if values are not finite and if it is of a kind that only `fuse` can use, and
    AdapterChangedError if the file has another content by now.
    """
    name = path.name
    try:
        before = path.stat()
        header, layers = open_adapter(path, model, MAX_BYTES)
        if dense := [key for layer in layers for key in layer.dense]:
            raise AdapterFileError(
                f"{name} has weights that no request can use, only `fuse` in a model's file: {listed(dense)}"
            )
        wanted = [layer for layer in layers if layer.part in parts]
        tensors, found = read_tensors(header, {key for layer in wanted for key in layer.keys.values()})
        is_changed = _identity(path.stat()) != _identity(before) or found != digest
    except OSError as error:
        raise AdapterChangedError(f"{name} was changed or removed: {error.strerror}") from error
    if is_changed:
        raise AdapterChangedError(f"{name} was changed or removed since it was looked at: ask for it again")
    found_parts: dict[str, dict[str, LowRank]] = {}
    for layer in wanted:
        made = _checked(name, layer, by_role(layer, tensors))
        found_parts.setdefault(layer.part, {})[layer.module] = made
    return dict(found_parts)


def by_role(layer: Layer, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A layer's tensors by role. tensors: by key"""
    return {role: tensors[key] for role, key in layer.keys.items()}


def read_tensors(header: Header, keys: Collection[str]) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors in float32, and SHA-256 of the whole file. Raises AdapterFileError and OSError.

    The file is not mapped into memory, because a process dies if its mapped file is cut off. What is hashed
    is what is returned.
    """
    tensors: dict[str, torch.Tensor] = {}
    digest = hashlib.sha256()
    scratch = memoryview(bytearray(_CHUNK_BYTES))
    places = sorted((header.tensors[key].start, key) for key in keys)
    with header.path.open("rb", buffering=0) as file:
        for start, key in places:
            while (gap := start - file.tell()) > 0:
                _fill(header, file, scratch[: min(gap, _CHUNK_BYTES)], digest)
            place = header.tensors[key]
            dtype = DTYPES.get(place.dtype) or _INTEGERS[place.dtype]
            tensor = torch.empty(place.shape or (1,), dtype=dtype)
            _fill(header, file, byte_view(tensor), digest)
            tensors[key] = tensor.float()
        while count := file.readinto(scratch):
            digest.update(scratch[:count])
    return tensors, digest.hexdigest()


def _fill(header: Header, file: io.FileIO, buffer: memoryview, digest: hashlib._Hash) -> None:
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])
        if not count:
            raise AdapterFileError(
                f"{header.path.name} is truncated: it has fewer bytes than its header says"
            )
        done += count
    digest.update(buffer)


def _identity(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _checked(name: str, layer: Layer, tensors: dict[str, torch.Tensor]) -> LowRank:
    made = low_rank(layer, tensors)
    if not (is_finite(made.a) and is_finite(made.b)):
        raise not_finite(name, layer)
    return made


def is_finite(tensor: torch.Tensor) -> bool:
    low, high = (float(value) for value in torch.aminmax(tensor))  # NaN if there is one
    return isfinite(low) and isfinite(high)


def not_finite(name: str, layer: Layer) -> AdapterFileError:
    """name: of the file"""
    return AdapterFileError(
        f"{name} has values that are not finite, or too large, for {layer.module} of the {layer.part} "
        f"({listed(sorted(layer.keys.values()))})"
    )
