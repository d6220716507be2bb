"""Adapter files of every kind, with random weights, for tests.

What makes the factors of one layer takes the shape of its weight, and returns them by the end of their key.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from lycoris import functional
from safetensors.torch import save_file

from deployments.adapters.targets import ModelTargets
from deployments.engine.adapters import LowRank, Target

Tensors = dict[str, torch.Tensor]
RANK = 2


def save(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata=metadata)
    return path


def shape_of(target: Target) -> tuple[int, ...]:
    """Of the layer's weight."""
    return (target.num_outputs, target.num_inputs, *(target.kernel or ()))


def lora(target: Target, rank: int = RANK) -> Tensors:
    """The two factors, by role: down and up."""
    outputs, inputs, *kernel = shape_of(target)
    return {
        "down": torch.randn(rank, inputs, *kernel) / (inputs * max(rank, 1)) ** 0.5,
        "up": torch.randn(outputs, rank, *(1 for _ in kernel)),
    }


def kohya(
    model: ModelTargets, parts: Iterable[str] = ("unet",), rank: int = RANK, alpha: float | None = 1.0
) -> Tensors:
    """A LoRA of all layers of the parts, in kohya's names."""
    found: Tensors = {}
    for part in parts:
        for module, target in model.parts[part].items():
            stem = kohya_stem(part, module, "text_encoder_2" in model.parts)
            factors = lora(target, rank)
            found[f"{stem}.lora_down.weight"] = factors["down"]
            found[f"{stem}.lora_up.weight"] = factors["up"]
            if alpha is not None:
                found[f"{stem}.alpha"] = torch.tensor(alpha)
    return found


def kohya_stem(part: str, module: str, is_xl: bool = False) -> str:
    name = module.replace(".", "_")
    if part == "unet":
        return f"lora_unet_{name}"
    prefix = "lora_te2" if part == "text_encoder_2" else "lora_te1" if is_xl else "lora_te"
    return f"{prefix}_text_model_{name.removeprefix('text_model_')}"


def delta(made: LowRank, shape: Iterable[int]) -> torch.Tensor:
    """What is added to a weight of that shape."""
    return (made.b @ made.a).reshape(*shape)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape) / max(shape) ** 0.5


def loha(outputs: int, inputs: int, *kernel: int) -> Tensors:
    pixels = torch.Size(kernel).numel()
    return {
        "hada_w1_a": random(outputs, RANK),
        "hada_w1_b": random(RANK, inputs * pixels),
        "hada_w2_a": random(outputs, RANK),
        "hada_w2_b": random(RANK, inputs * pixels),
    }


def tucker_loha(outputs: int, inputs: int, *kernel: int) -> Tensors:
    factors = {f"hada_t{half}": random(RANK, RANK, *kernel) for half in (1, 2)}
    for half in (1, 2):
        factors |= {f"hada_w{half}_a": random(RANK, outputs), f"hada_w{half}_b": random(RANK, inputs)}
    return factors


def tucker_lora(outputs: int, inputs: int, *kernel: int) -> Tensors:
    ones = (1,) * len(kernel)
    return {
        "lora_down.weight": random(RANK, inputs, *ones),
        "lora_mid.weight": random(RANK, RANK, *kernel),
        "lora_up.weight": random(outputs, RANK, *ones),
    }


def lora_file(outputs: int, inputs: int, *kernel: int) -> Tensors:
    ones = (1,) * len(kernel)
    return {
        "lora_down.weight": random(RANK, inputs, *kernel),
        "lora_up.weight": random(outputs, RANK, *ones),
    }


def lokr(outputs: int, inputs: int, *kernel: int) -> Tensors:
    pixels = torch.Size(kernel).numel()
    return {
        "lokr_w1": random(2, 4),
        "lokr_w2_a": random(outputs // 2, RANK),
        "lokr_w2_b": random(RANK, inputs // 4 * pixels).reshape(RANK, inputs // 4, *kernel),
    }


def lokr_of_four(outputs: int, inputs: int, *kernel: int) -> Tensors:
    factors = lokr(outputs, inputs, *kernel)
    del factors["lokr_w1"]
    return factors | {"lokr_w1_a": random(2, RANK), "lokr_w1_b": random(RANK, 4)}


def lokr_of_more(outputs: int, inputs: int, *kernel: int) -> Tensors:
    """Its smaller weight is decomposed into larger ones, as LyCORIS does."""
    return lokr_of_four(outputs, inputs, *kernel) | {"lokr_w1_a": random(2, 7), "lokr_w1_b": random(7, 4)}


def tucker_lokr(outputs: int, inputs: int, *kernel: int) -> Tensors:
    return {
        "lokr_w1": random(2, 4),
        "lokr_t2": random(RANK, RANK, *kernel),
        "lokr_w2_a": random(RANK, outputs // 2),
        "lokr_w2_b": random(RANK, inputs // 4),
    }


def full_lokr(outputs: int, inputs: int, *kernel: int) -> Tensors:
    return {"lokr_w1": random(2, 4), "lokr_w2": random(outputs // 2, inputs // 4, *kernel)}


def dora(outputs: int, inputs: int, *kernel: int) -> Tensors:
    ones = (1,) * len(kernel)
    return lora_file(outputs, inputs, *kernel) | {"dora_scale": random(outputs, 1, *ones).abs()}


def dora_of_inputs(outputs: int, inputs: int, *kernel: int) -> Tensors:
    ones = (1,) * len(kernel)
    return lora_file(outputs, inputs, *kernel) | {"dora_scale": random(1, inputs, *ones).abs()}


def dora_of_loha(outputs: int, inputs: int, *kernel: int) -> Tensors:
    ones = (1,) * len(kernel)
    return loha(outputs, inputs, *kernel) | {"dora_scale": random(outputs, 1, *ones).abs()}


def diff(outputs: int, *rest: int) -> Tensors:
    return {"diff": random(outputs, *rest), "diff_b": random(outputs)}


LAYERS = {  # of tiny_models' sd1
    "linear": "time_embedding.linear_1",  # 64 outputs, 16 inputs
    "one pixel": "down_blocks.1.attentions.0.proj_in",  # 32, 32
    "convolution": "down_blocks.1.resnets.0.conv1",  # 32, 16
    "few outputs": "conv_out",  # 4, 16
}


def shape_in(model: ModelTargets, layer: str) -> tuple[int, ...]:
    """Of the weight of one of LAYERS."""
    return model.shapes["unet"][f"{LAYERS[layer]}.weight"]


def save_layer(folder: Path, layer: str, factors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """A file for one of LAYERS. factors: by the end of their key"""
    stem = kohya_stem("unet", LAYERS[layer])
    tensors = {f"{stem}.{end}": tensor for end, tensor in factors.items()}
    return save(folder / "a.safetensors", tensors, metadata)


def weight_of_lycoris(factors: Tensors, shape: tuple[int, ...], alpha: float) -> torch.Tensor:
    """What LyCORIS adds to a weight of this shape."""
    gamma = alpha / RANK
    if "lora_up.weight" in factors:
        names = ("lora_down.weight", "lora_up.weight", "lora_mid.weight")
        return functional.locon.diff_weight(*map(factors.get, names), gamma=gamma).reshape(shape)
    if "hada_w1_a" in factors:
        halves = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a", "hada_t1", "hada_t2")
        given = map(factors.get, halves)
        return functional.loha.diff_weight(*given, gamma=torch.tensor(gamma)).reshape(shape)
    parts = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    is_whole = "lokr_w1" in factors and "lokr_w2" in factors
    weights = (factors.get(f"lokr_{part}") for part in parts)
    return functional.lokr.kron_weight(*weights, scale=1.0 if is_whole else gamma).reshape(shape)
