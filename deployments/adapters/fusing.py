"""Merges adapters into a model's weights: every kind, those that requests cannot use too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from deployments.adapters.composing import product
from deployments.adapters.errors import AdapterFileError
from deployments.adapters.layers import DORA, Layer
from deployments.adapters.reading import by_role, is_finite, not_finite, read_tensors
from deployments.adapters.resolving import open_adapter
from deployments.adapters.targets import ModelTargets

Tensors = dict[str, torch.Tensor]


def fuse(part: str, tensors: Tensors, adapters: Sequence[tuple[Path, float]], model: ModelTargets) -> None:
    """Merges adapters into the tensors of one part, one after another.

    tensors: the part's state dict, in which merged ones are replaced. They are computed in float32 and get
        their own dtype back at the end
    adapters: files, and what their effects are multiplied by; 1 is the adapter as it was trained
    Raises AdapterFileError, also if values are not finite then.
    """
    dtypes: dict[str, torch.dtype] = {}
    for path, scale in adapters:
        header, layers = open_adapter(path, model)
        here = [layer for layer in layers if layer.part == part]
        try:
            read, _ = read_tensors(header, {key for layer in here for key in layer.keys.values()})
        except OSError as error:
            raise AdapterFileError(f"{path.name} cannot be read: {error.strerror}") from error
        for layer in here:
            for name, merged in _merged(layer, by_role(layer, read), tensors, scale):
                if not is_finite(merged):
                    raise not_finite(path.name, layer)
                dtypes.setdefault(name, tensors[name].dtype)
                tensors[name] = merged
    for name, dtype in dtypes.items():
        tensors[name] = tensors[name].to(dtype)
        if not is_finite(tensors[name]):
            names = ", ".join(path.name for path, _ in adapters)
            raise AdapterFileError(f"with {names}, {name} of the {part} has values beyond {dtype}")


def _merged(
    layer: Layer, given: Mapping[str, torch.Tensor], tensors: Tensors, scale: float
) -> Iterable[tuple[str, torch.Tensor]]:
    """The tensors of a layer that change, in float32, by name. given: by role"""
    weight, bias = f"{layer.module}.weight", f"{layer.module}.bias"
    if given.keys() - {"diff_b", "b_norm"}:
        yield weight, _merged_weight(layer, given, tensors[weight].float(), scale)
    for role in given.keys() & {"diff_b", "b_norm"}:
        yield bias, tensors[bias].float() + scale * given[role].reshape(tensors[bias].shape)


def _merged_weight(
    layer: Layer, given: Mapping[str, torch.Tensor], weight: torch.Tensor, scale: float
) -> torch.Tensor:
    for role in ("diff", "w_norm"):
        if role in given:
            return weight + scale * given[role].reshape(layer.shape)
    if "set_weight" in given:
        return torch.lerp(weight, given["set_weight"].reshape(layer.shape), scale)
    delta = product(layer, given)
    if not layer.is_dora:
        return weight.add(delta, alpha=scale)
    [magnitudes] = (given[role] for role in DORA & given.keys())
    return torch.lerp(weight, _with_magnitudes(weight + delta, magnitudes, layer), scale)


def _with_magnitudes(weight: torch.Tensor, magnitudes: torch.Tensor, layer: Layer) -> torch.Tensor:
    """The weight with these norms: of each output, or of each input in older files of LyCORIS."""
    outputs, inputs = layer.shape[:2]
    is_per_input = "dora_scale" in layer.keys and magnitudes.shape[:2] == (1, inputs) != (outputs, 1)
    if is_per_input and magnitudes.ndim > 1:
        rows, shape = weight.transpose(0, 1), (1, inputs)
    else:
        rows, shape = weight, (outputs, 1)
    norms = rows.flatten(1).norm(dim=1) + torch.finfo(torch.float32).eps
    factors: torch.Tensor = (magnitudes.flatten() / norms).reshape(*shape, *(1 for _ in layer.shape[2:]))
    return weight * factors
