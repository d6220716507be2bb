"""The parts of a model before their weights are read: configuration, tensors, and where each comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deployments.ingestion.model_entry import IngestionError
from deployments.tensor_files.architectures import Architecture, Shape
from deployments.tensor_files.tensor_names import Origin
from deployments.tensor_files.weights import TensorFiles

Candidates = Callable[[str], Iterable[Origin]]

_MANY_MISSING = 0.1  # the share from which the configuration may be the wrong one


@dataclass(frozen=True, slots=True)
class Part:
    """A part whose weights can be read.

    origins: by the name of its tensor; change: is called with the tensors once they are read, to replace some
    """

    architecture: Architecture
    origins: Mapping[str, Origin]
    files: TensorFiles
    change: Callable[[dict[str, torch.Tensor]], None] | None = None

    @property
    def num_bytes(self) -> int:
        return self.files.num_bytes({origin.name for origin in self.origins.values()})


@dataclass(frozen=True, slots=True)
class Plan:
    """A model before its weights are read.

    index: what model_index.json says besides its parts; tokenizers: files by name, for each tokenizer
    """

    pipeline: str
    index: Mapping[str, Any]
    parts: Sequence[Part]
    tokenizers: Mapping[str, Mapping[str, Path]]
    scheduler: Mapping[str, Any]
    source: str


def find_tensors(built: Architecture, files: TensorFiles, candidates: Candidates) -> Part:
    """The part with the origin of each of its tensors. Raises IngestionError for what files lack."""
    stored = files.shapes()
    origins: dict[str, Origin] = {}
    missing: list[str] = []
    for name, shape in built.shapes.items():
        tried = list(candidates(name))
        origin = next((one for one in tried if one.name in stored), None)
        if origin is None:
            missing.append(tried[0].name)
        elif not _same_values(_made_shape(stored[origin.name], origin), shape):
            raise IngestionError(
                f"{files.description}: {origin.name} has the shape {list(stored[origin.name])}, which "
                f"does not fit its {built.part}, where {name} has {list(shape)}. If its architecture is "
                "another, give a folder with its configurations as `config`"
            )
        else:
            origins[name] = origin
    if missing:
        is_other = len(missing) > _MANY_MISSING * len(built.shapes)
        other = ", or name the folder of its architecture's configurations as `config`" if is_other else ""
        raise IngestionError(
            f"{files.description}: the weights of {built.part} lack {len(missing)} of {len(built.shapes)} "
            f"tensors, such as {missing[0]}. Take a complete checkpoint{other}"
        )
    return Part(built, origins, files)


def _made_shape(shape: Shape, origin: Origin) -> Shape:
    if origin.third is not None and shape:
        return (shape[0] // 3, *shape[1:])
    return shape[::-1] if origin.is_transposed else shape


def _same_values(shape: Shape, wanted: Shape) -> bool:
    """Whether they differ at most in sides of 1, as convolutions over one pixel and linear layers do."""
    return _without_ones(shape, 2) == _without_ones(wanted, 2)


def _without_ones(shape: Shape, keep: int) -> Shape:
    while len(shape) > keep and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def read_tensors(part: Part, on_bytes: Callable[[int], None]) -> dict[str, torch.Tensor]:
    """The part's tensors, contiguous, by their names; fp8 in float16, which has all of its values."""
    read = part.files.read({origin.name for origin in part.origins.values()}, on_bytes)
    tensors = dict(_made(part, read))
    if part.change is not None:
        part.change(tensors)
    return tensors


def _made(part: Part, read: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, origin in sorted(part.origins.items()):
        tensor = read[origin.name]
        if not tensor.is_floating_point():
            raise IngestionError(
                f"{part.files.description}: {origin.name} is stored as {tensor.dtype}, a quantised form, "
                "which is not served: take the model's float16 file"
            )
        if origin.third is not None:
            tensor = tensor.chunk(3)[origin.third].clone()
        if origin.is_transposed:
            tensor = tensor.T
        if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            tensor = tensor.to(torch.float16)
        yield name, tensor.reshape(part.architecture.shapes[name]).contiguous()
