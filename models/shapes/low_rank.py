"""Low-rank changes (LoRA) to the embedded U-Net's layers: training them, and their files."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

RANK = 8  # of every layer: in float16 all of them together just stay below a megabyte
_PREFIX = "lora_unet_"  # kohya's, which every other program reads too


class LowRankChange(nn.Module):
    """Adds up @ down to a layer's weight. It starts at zero.

    down: [rank, inputs times the kernel's size]; up: [outputs, rank]
    """

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        rows = weight.flatten(1)
        self.down = nn.Parameter(torch.randn(rank, rows.shape[1]) * rows.shape[1] ** -0.5)
        self.up = nn.Parameter(torch.zeros(rows.shape[0], rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def add_adapter(unet: UNet2DConditionModel, rank: int = RANK) -> None:
    """Lets only a low-rank change of every linear layer and convolution learn from now on."""
    unet.requires_grad_(False)
    for layer in list(unet.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            change = LowRankChange(layer.weight, rank)
            parametrize.register_parametrization(layer, "weight", change)


def changes_of(unet: UNet2DConditionModel) -> dict[str, LowRankChange]:
    """The low-rank changes by their layers' names."""
    return {
        name: layer.parametrizations.weight[0]
        for name, layer in unet.named_modules()
        if parametrize.is_parametrized(layer, "weight")
    }


def save_adapter(unet: UNet2DConditionModel, path: Path) -> None:
    """Writes the changes as a file in kohya's format, in float16."""
    tensors = {}
    for name, change in changes_of(unet).items():
        weight = unet.get_submodule(name).weight
        rank, key = change.down.shape[0], _PREFIX + name.replace(".", "_")
        kernel = [1] * (weight.ndim - 2)
        tensors[f"{key}.lora_down.weight"] = change.down.view(rank, *weight.shape[1:])
        tensors[f"{key}.lora_up.weight"] = change.up.view(*change.up.shape, *kernel)
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    halves = {key: value.detach().to(torch.float16).contiguous() for key, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves, path, {"format": "pt"})
