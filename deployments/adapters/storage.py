"""Whether a file's tensors are stored as its header says, so that nothing is allocated by a wrong shape."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

from deployments.adapters.errors import AdapterFileError, shown
from deployments.tensor_files.headers import Header

_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}  # bytes
_INTEGERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}  # an alpha may be one
_MAX_SIDES = 8


def check_storage(header: Header, alphas: Collection[str]) -> None:
    """Raises AdapterFileError. alphas: the keys that may be integers"""
    name, before = header.path.name, 0
    for key, tensor in sorted(header.tensors.items(), key=lambda item: item[1].start):
        where = f"{name}: {shown(key)}"
        size = _FLOATS.get(tensor.dtype) or (_INTEGERS.get(tensor.dtype) if key in alphas else None)
        if size is None:
            raise AdapterFileError(
                f"{where} is stored as {tensor.dtype[:20]}; allowed are {', '.join(_FLOATS)}"
            )
        if len(tensor.shape) > _MAX_SIDES or prod(tensor.shape) * size != tensor.end - tensor.start:
            raise AdapterFileError(f"{where} has not as many bytes as its shape says: the file is damaged")
        if tensor.start == tensor.end:
            raise AdapterFileError(f"{where} has no values")
        if tensor.start < before:
            raise AdapterFileError(f"{where} is stored in the place of another: the file is damaged")
        before = tensor.end
