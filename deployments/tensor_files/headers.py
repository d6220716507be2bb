"""Reads the header of a safetensors file: names, shapes and places of its tensors. It reads no weights.

The format: 8 bytes with the header's length, a JSON object, then the tensors' bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.tensor_files.errors import TensorFileError

PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})
# What has another suffix may be a hub id, as in owner/name-v1.5.
FILE_SUFFIXES = PICKLE_SUFFIXES | {".safetensors", ".sft", ".gguf"}
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file. dtype: as safetensors spells it; start, end: bytes from the file's beginning"""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a safetensors file."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self.tensors[name].shape if name in self.tensors else None


def read_header(path: Path, max_header_bytes: int = _MAX_HEADER_BYTES) -> Header:
    """Raises TensorFileError if the file is not a complete safetensors file, or its header is larger."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise _is_pickle(path)
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            length = header_length(path, file.read(LENGTH_BYTES), max_header_bytes)
            text = file.read(length)
    except OSError as error:
        raise TensorFileError(f"{path} cannot be read: {error.strerror}") from error
    if len(text) < length:
        raise _is_truncated(path, size_bytes, "its header is not whole")
    return _parse(path, text, size_bytes)


def header_length(path: Path, start: bytes, max_header_bytes: int = _MAX_HEADER_BYTES) -> int:
    """Bytes of the header, which follow the first LENGTH_BYTES. start: those; path: for errors

    Raises TensorFileError if the file is not a safetensors file, or its header is larger.
    """
    _refuse_other_formats(path, start)
    length: int = struct.unpack("<Q", start)[0] if len(start) == LENGTH_BYTES else 0
    if not 1 < length <= max_header_bytes:
        raise _is_no_safetensors(path)
    return length


def _parse(path: Path, text: bytes, size_bytes: int) -> Header:
    begin = LENGTH_BYTES + len(text)
    try:
        entries = json.loads(text)
        metadata = dict((entries.pop("__metadata__", None) or {}).items())
        tensors = {name: _stored(entry, begin) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _is_no_safetensors(path) from error
    end = max((tensor.end for tensor in tensors.values()), default=begin)
    if end > size_bytes:
        raise _is_truncated(path, size_bytes, f"its header promises {end:,} bytes")
    return Header(path, tensors, {str(key): str(value) for key, value in metadata.items()})


def _stored(entry: Mapping[str, Any], begin: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    dtype, shape = entry["dtype"], entry["shape"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise TypeError("dtype or shape")
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)) or start > end:
        raise ValueError("offsets or shape")
    return StoredTensor(dtype, tuple(shape), begin + start, begin + end)


def _refuse_other_formats(path: Path, start: bytes) -> None:
    if start.startswith(b"GGUF"):
        raise TensorFileError(
            f"{path} is a GGUF file, whose weights are quantised, which is not served: take its "
            "safetensors file"
        )
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")) and not _may_be_length(start):
        raise _is_pickle(path)
    if start.startswith(b"version "):
        raise TensorFileError(
            f"{path} is a pointer of Git LFS and not the file itself: fetch it by `git lfs pull`"
        )


def _may_be_length(start: bytes) -> bool:
    """Whether the first bytes can be the length of a header."""
    return len(start) == LENGTH_BYTES and start[4:] == bytes(4)


def _is_pickle(path: Path) -> TensorFileError:
    return TensorFileError(
        f"{path} is a pickle, which can run any code when it is loaded, and is not read: take its "
        ".safetensors file, or convert it where nothing can be harmed"
    )


def _is_no_safetensors(path: Path) -> TensorFileError:
    return TensorFileError(
        f"{path} is not a safetensors file: its beginning is not a header. Download it anew"
    )


def _is_truncated(path: Path, size_bytes: int, reason: str) -> TensorFileError:
    return TensorFileError(
        f"{path} is truncated: it has {size_bytes:,} bytes, and {reason}. Download it anew"
    )
