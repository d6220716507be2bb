"""The low-rank factors of a layer, from those in its file, in float32. Every form here is exact."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from deployments.adapters.layers import Layer
from deployments.engine.adapters import LowRank

Tensors = Mapping[str, torch.Tensor]  # by role
Pair = tuple[torch.Tensor, torch.Tensor]  # b [outputs, rank], a [rank, width]


def low_rank(layer: Layer, tensors: Tensors) -> LowRank:
    """What the layer adds to its weight. tensors: float32, by role; they may be changed in place"""
    b, a = _PAIRS[layer.kind](layer, tensors)
    return LowRank(a.contiguous(), b.mul_(scale_of(layer, tensors)).contiguous())


def product(layer: Layer, tensors: Tensors) -> torch.Tensor:
    """What the layer adds to its weight, in the weight's shape. tensors: float32, by role"""
    if layer.kind == "lokr":  # its factors may be whole
        (b1, a1), (b2, a2) = _halves_of_lokr(tensors)
        delta = torch.kron(b1 @ a1, b2 @ a2)
    else:
        b, a = _PAIRS[layer.kind](layer, tensors)
        delta = b @ a
    return delta.reshape(layer.shape).mul_(scale_of(layer, tensors))


def scale_of(layer: Layer, tensors: Tensors) -> float:
    """What the product of its factors is multiplied by."""
    if "alpha" in tensors and layer.divisor is not None:
        return float(tensors["alpha"].reshape(())) / layer.divisor
    return layer.scale


def _lora(layer: Layer, tensors: Tensors) -> Pair:
    down, up = tensors["down"], tensors["up"]
    if "mid" not in tensors:
        return up.reshape(layer.shape[0], -1), down.flatten(1)
    mid = tensors["mid"].reshape(*tensors["mid"].shape[:2], -1)  # [top, rank, pixels]
    return up.reshape(layer.shape[0], -1), torch.einsum("trk,ri->tik", mid, down.flatten(1)).flatten(1)


def _loha(layer: Layer, tensors: Tensors) -> Pair:
    """(b1 a1) * (b2 a2), element by element, is the sum over all pairs of ranks."""
    b1, a1 = _half(tensors, "hada_w1", "hada_t1")
    b2, a2 = _half(tensors, "hada_w2", "hada_t2")
    if layer.rank < a1.shape[0] * a2.shape[0]:
        return _full((b1 @ a1) * (b2 @ a2))
    b = torch.einsum("or,os->ors", b1, b2).flatten(1)
    return b, torch.einsum("ri,si->rsi", a1, a2).flatten(0, 1)


def _lokr(layer: Layer, tensors: Tensors) -> Pair:
    """kron(b1 a1, b2 a2) is kron(b1, b2) kron(a1, a2)."""
    (b1, a1), (b2, a2) = map(_reduced, _halves_of_lokr(tensors))
    if layer.rank < a1.shape[0] * a2.shape[0]:
        return _full(torch.kron(b1 @ a1, b2 @ a2))
    return torch.kron(b1, b2), torch.kron(a1, a2)


def _reduced(pair: Pair) -> Pair:
    """A product of no higher rank than its smaller side. LyCORIS decomposes some weights into larger ones."""
    b, a = pair
    return pair if a.shape[0] <= min(b.shape[0], a.shape[1]) else _full(b @ a)


def _halves_of_lokr(tensors: Tensors) -> tuple[Pair, Pair]:
    return _half(tensors, "lokr_w1", ""), _half(tensors, "lokr_w2", "lokr_t2")


def _half(tensors: Tensors, name: str, core: str) -> Pair:
    """One of the two weights that are multiplied."""
    if name in tensors:
        return _full(tensors[name].flatten(1))
    b, a = tensors[f"{name}_a"], tensors[f"{name}_b"]
    if core not in tensors:
        return b.flatten(1), a.flatten(1)
    middle = tensors[core].reshape(*tensors[core].shape[:2], -1)  # [ranks, ranks, pixels]
    composed = torch.einsum("rsk,si->rik", middle, a.flatten(1)).flatten(1)
    return b.flatten(1).T.contiguous(), composed.contiguous()  # torch.kron takes no others


def _full(weight: torch.Tensor) -> Pair:
    """A whole weight as a product with the identity on its smaller side."""
    outputs, width = weight.shape
    if outputs <= width:
        return torch.eye(outputs), weight
    return weight, torch.eye(width)


_PAIRS = {"lora": _lora, "locon": _lora, "loha": _loha, "lokr": _lokr}
