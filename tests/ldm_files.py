"""Single-file checkpoints (the layout of Stability's `ldm`), written from diffusers models."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from deployments.tensor_files.tensor_names import UNetNames, open_clip, vae_ldm

UNET = "model.diffusion_model."
VAE = "first_stage_model."
# The prefix of each text encoder, and whether it is OpenCLIP's.
TEXT: Mapping[str, Mapping[str, tuple[str, bool]]] = {
    "sd1": {"text_encoder": ("cond_stage_model.transformer.", False)},
    "sd2": {"text_encoder": ("cond_stage_model.model.", True)},
    "sdxl": {
        "text_encoder": ("conditioner.embedders.0.transformer.", False),
        "text_encoder_2": ("conditioner.embedders.1.model.", True),
    },
}
Tensors = dict[str, torch.Tensor]


def tensors(family: str, modules: Mapping[str, Any]) -> Tensors:
    """A checkpoint's tensors. modules: unet, text_encoder and so on; of the VAE there may be none"""
    found = unet(modules["unet"])
    if modules.get("vae") is not None:
        found |= vae(modules["vae"])
    for part, (prefix, is_open_clip) in TEXT[family.removesuffix("-inpainting")].items():
        found |= (openclip if is_open_clip else clip)(modules[part], prefix)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def write(path: Path, family: str, pipeline: DiffusionPipeline, **changes: Any) -> Path:
    """Writes a checkpoint. changes: tensors to add by name, or to remove where they are None"""
    metadata = changes.pop("metadata", None)
    return save(path, tensors(family, pipeline.components) | changes, metadata)


def save(
    path: Path, found: Mapping[str, torch.Tensor | None], metadata: dict[str, str] | None = None
) -> Path:
    """Writes tensors into a safetensors file. Those that are None are left out."""
    kept = {name: tensor.clone() for name, tensor in found.items() if tensor is not None}
    save_file(kept, path, metadata=metadata)
    return path


def unet(module: Any, prefix: str = UNET) -> Tensors:
    state = module.state_dict()
    names = UNetNames(module.config, state)
    return {prefix + names.ldm(name): tensor for name, tensor in state.items()}


def averaged(found: Tensors) -> Tensors:
    """The U-Net's tensors under the names that averaged weights (EMA) have; the others as they are."""
    return {
        f"model_ema.diffusion_model{name.removeprefix(UNET).replace('.', '')}"
        if name.startswith(UNET)
        else name: one
        for name, one in found.items()
    }


def vae(module: Any, prefix: str = VAE) -> Tensors:
    """In single files, the attention's linear layers are convolutions over one pixel."""
    blocks = len(module.config["up_block_types"])
    found = {prefix + vae_ldm(name, blocks): tensor for name, tensor in module.state_dict().items()}
    is_linear = {
        name: ".attn_1." in name and name.endswith("weight") and tensor.ndim == 2
        for name, tensor in found.items()
    }
    return {name: tensor[..., None, None] if is_linear[name] else tensor for name, tensor in found.items()}


def clip(module: Any, prefix: str) -> Tensors:
    found = {name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()}
    positions = torch.arange(module.config.max_position_embeddings)[None]
    found["embeddings.position_ids"] = positions  # as older files have it
    return {f"{prefix}text_model.{name}": tensor for name, tensor in found.items()}


def openclip(module: Any, prefix: str) -> Tensors:
    """q, k and v are one tensor, and the projection is transposed."""
    found: Tensors = {}
    thirds: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in module.state_dict().items():
        origin = open_clip(name)
        if origin.third is not None:
            thirds.setdefault(prefix + origin.name, {})[origin.third] = tensor
        else:
            found[prefix + origin.name] = tensor.T if origin.is_transposed else tensor
    return found | {name: torch.cat([of[0], of[1], of[2]]) for name, of in thirds.items()}


def to_dtype(found: Tensors, dtype: torch.dtype) -> Tensors:
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in found.items()
    }


def named(found: Tensors, end: str) -> Iterator[str]:
    """The names with this end."""
    return (name for name in sorted(found) if name.endswith(end))
