"""All layers that a file changes, from its header, for one model."""

from __future__ import annotations

from pathlib import Path

from deployments.adapters.errors import AdapterFileError, listed
from deployments.adapters.keys import divide
from deployments.adapters.layers import Layer, layer_of
from deployments.adapters.metadata import Scales
from deployments.adapters.storage import check_storage
from deployments.adapters.strangers import refuse_strangers
from deployments.adapters.targets import ModelTargets
from deployments.tensor_files.errors import TensorFileError
from deployments.tensor_files.headers import Header, read_header

MAX_BYTES = 2 << 30
MAX_HEADER_BYTES = 8 << 20  # as JSON in Python, a header takes up to twenty times its size


def open_adapter(path: Path, model: ModelTargets, max_bytes: int = MAX_BYTES) -> tuple[Header, list[Layer]]:
    """The file's header, and all layers that it changes. Raises AdapterFileError."""
    header = _header(path, max_bytes)
    refuse_strangers(header, model)
    return header, _layers(header, model)


def _header(path: Path, max_bytes: int) -> Header:
    try:
        if not path.is_file():
            raise AdapterFileError(f"{path.name} is no file")
        num_bytes = path.stat().st_size
    except OSError as error:
        raise AdapterFileError(f"{path.name} cannot be read: {error.strerror}") from error
    if num_bytes > max_bytes:
        raise AdapterFileError(f"{path.name} has {num_bytes:,} bytes; up to {max_bytes:,} are allowed")
    try:
        header = read_header(path, MAX_HEADER_BYTES)
    except TensorFileError as error:
        raise AdapterFileError(str(error).replace(str(path), path.name)) from error
    if not header.tensors:
        raise AdapterFileError(f"{path.name} is empty: it has no tensors")
    return header


def _layers(header: Header, model: ModelTargets) -> list[Layer]:
    found: dict[tuple[str, str], dict[str, str]] = {}
    unknown: list[str] = []
    twice: list[str] = []
    for key in header.tensors:
        divided = divide(key)
        place = model.find(divided[0]) if divided else None
        if divided is None or place is None:
            unknown.append(key)
        elif (role := divided[1]) in (roles := found.setdefault(place, {})):
            twice.append(f"{roles[role]} and {key}")
        else:
            roles[role] = key
    name = header.path.name
    if unknown:
        raise AdapterFileError(
            f"{name} has {len(unknown)} keys (of {len(header.tensors)}) that are for no layer of this model, "
            f"or of no kind that is known: {listed(sorted(unknown), 5)}"
        )
    if twice:
        raise AdapterFileError(f"{name} has two keys for one thing: {listed(twice)}. Remove one of them")
    check_storage(header, {roles["alpha"] for roles in found.values() if "alpha" in roles})
    return _fitting(header, model, found)


def _fitting(
    header: Header, model: ModelTargets, found: dict[tuple[str, str], dict[str, str]]
) -> list[Layer]:
    scales = Scales(header)
    layers: list[Layer] = []
    problems: list[str] = []
    for place, keys in found.items():
        try:
            layers.append(layer_of(header, model, place, keys, scales))
        except AdapterFileError as error:
            problems.append(str(error))
    if problems:
        others = f" {len(problems) - 1} other layers do not fit either." if problems[1:] else ""
        raise AdapterFileError(f"{header.path.name}: {problems[0]}.{others}")
    return layers
