"""Adapters (LoRAs) as requests name them, and their weights as the engine takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter as stages know it; they read its file when a request needs it.

    name: in requests, errors and pictures; path: of a safetensors file; digest: the file's SHA-256
    unet_rank, text_rank: the highest rank of its layers in the U-Net and in the text encoders; 0: it has none
    """

    name: str
    path: str
    digest: str
    unet_rank: int
    text_rank: int


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """An adapter in a request. scale: what its effect is multiplied by"""

    adapter: AdapterRef
    scale: float


@dataclass(frozen=True, slots=True)
class Target:
    """A layer that adapters may change: a linear one, or a convolution with its kernel's height and width."""

    num_inputs: int  # features or channels
    num_outputs: int
    kernel: tuple[int, int] | None = None  # None for a linear layer

    @property
    def width(self) -> int:
        """Values of one input to a row of A."""
        height, width = self.kernel or (1, 1)
        return self.num_inputs * height * width


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to a layer's weight: b @ a, in the layer's shape. The alpha is in b.

    a: [rank, inputs], for a convolution [rank, inputs * kernel height * kernel width]; b: [outputs, rank];
    both float32 on the CPU
    """

    a: torch.Tensor
    b: torch.Tensor


Weights = Mapping[str, LowRank]  # by the layer's name in its module, as in `named_modules`


def targets_of(module: torch.nn.Module) -> dict[str, Target]:
    """All layers that adapters may change, by name. module: a U-Net or a text encoder"""
    from torch import nn  # noqa: PLC0415

    found = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            found[name] = Target(layer.in_features, layer.out_features)
        elif isinstance(layer, nn.Conv2d):
            height, width = layer.kernel_size
            found[name] = Target(layer.in_channels, layer.out_channels, (height, width))
    return found
