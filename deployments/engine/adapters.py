"""Adapters (LoRAs) as requests name them, and their weights as the engine takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deployments.engine.stage_errors import Fault, StageError, not_finite

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
class AdapterMemory:
    """A replica's memory for adapters that were used lately, in bytes: of the host, and of a GPU."""

    host_bytes: float = 0.0
    gpu_bytes: float = 0.0


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


_RANK_STEP = 16  # an adapter begins at a multiple of so many of a bank's rows


def padded_rank(rank: int) -> int:
    """The rows of a bank that an adapter of this rank takes."""
    return -(-rank // _RANK_STEP) * _RANK_STEP


def rank_buckets(max_rank: int) -> tuple[int, ...]:
    """The ranks that forwards are padded to, so that there are few shapes: 16, 32, 64, ... and max_rank."""
    steps = (_RANK_STEP * 2**power for power in range(16))
    return tuple(step for step in steps if step < max_rank) + ((max_rank,) if max_rank else ())


def of_unet(uses: Iterable[AdapterUse]) -> list[AdapterUse]:
    """The adapters that change the U-Net."""
    return [use for use in uses if use.adapter.unet_rank]


def of_text(uses: Iterable[AdapterUse]) -> tuple[AdapterUse, ...]:
    """The adapters that change a text encoder."""
    return tuple(use for use in uses if use.adapter.text_rank)


def bank_rows(uses: Iterable[AdapterUse]) -> int:
    """The rows of a U-Net's bank that these take together, each adapter once."""
    return sum({use.adapter.digest: padded_rank(use.adapter.unet_rank) for use in uses}.values())


def overflow(part: str, uses: Iterable[AdapterUse]) -> StageError:
    """The error for values that are not finite. part: of the model, which had these adapters"""
    named = ", ".join(f"{use.adapter.name} at scale {use.scale:g}" for use in uses)
    if not named:
        return not_finite(part)
    # The same scales would overflow again, so this is no fault of a file, which may be mended.
    return StageError(
        Fault.NOT_FINITE,
        f"With {named}, the {part} gave values that are not numbers (NaN or infinity); smaller scales may "
        "do.",
    )
