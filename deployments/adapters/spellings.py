"""The names that files have for a model's layers.

They are made from the model's own names, never the other way round, so that a name is one of its layers or
is unknown. Beside diffusers' own names there are those of single files (`input_blocks`, `resblocks`), each
with dots or, as kohya writes them, with underscores; and what diffusers wrote in earlier versions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from deployments.tensor_files.tensor_names import UNetNames, open_clip

# Before a layer's name, by part. The empty one is PEFT's `get_peft_model_state_dict` of a U-Net.
PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": (
        *("lora_unet_", "lycoris_", "unet.", "unet.base_model.model.", "base_model.model."),
        *("base_model.model.unet.", "diffusion_model.", "model.diffusion_model.", ""),
    ),
    "text_encoder": (
        *("lora_te_", "lora_te1_", "text_encoder.", "text_encoder.base_model.model."),
        *("base_model.model.text_encoder.", "clip_l.transformer.", "text_encoders.clip_l.transformer."),
        *("clip_h.transformer.", "text_encoders.clip_h.transformer."),
    ),
    "text_encoder_2": (
        *("lora_te2_", "text_encoder_2.", "text_encoder_2.base_model.model."),
        *("base_model.model.text_encoder_2.", "clip_g.transformer.", "text_encoders.clip_g.transformer."),
    ),
}
_OLD_TEXT_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
_ATTENTION = re.compile(r"(.*attn\d)\.(to_q|to_k|to_v|to_out)(?:\.0)?")


def unet_spellings(config: Mapping[str, Any], tensors: Collection[str]) -> dict[str, str]:
    """A U-Net's layers by all of their spellings, without prefix. tensors: the names in its state dict"""
    # Without a single number of layers there is no such layout.
    names = UNetNames(config, tensors) if isinstance(config["layers_per_block"], int) else None
    return _by_spelling(tensors, lambda module: _unet_spellings(module, names))


def text_spellings(tensors: Collection[str]) -> dict[str, str]:
    """A text encoder's layers by all of their spellings, without prefix."""
    return _by_spelling(tensors, _text_spellings)


def _by_spelling(tensors: Collection[str], of: Callable[[str], Iterator[str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for module in sorted({name.rpartition(".")[0] for name in tensors if "." in name}):
        for dotted in of(module):
            found.setdefault(dotted, module)
            found.setdefault(dotted.replace(".", "_"), module)
    return found


def _unet_spellings(module: str, names: UNetNames | None) -> Iterator[str]:
    yield module
    if names is not None:
        yield names.ldm(f"{module}.weight").removesuffix(".weight")
    if found := _ATTENTION.fullmatch(module):  # as diffusers wrote them before its version 0.22
        yield f"{found[1]}.processor.{found[2]}"
        yield f"{found[1]}.{found[2]}"


def _text_spellings(module: str) -> Iterator[str]:
    """With and without `text_model`, which transformers dropped from one of its two classes."""
    bare = module.removeprefix("text_model.")
    spelled = [bare]
    layer, _, last = bare.rpartition(".")
    if last in _OLD_TEXT_ATTENTION:
        spelled.append(f"{layer}.{_OLD_TEXT_ATTENTION[last]}")
    for name in spelled:
        yield name
        yield f"text_model.{name}"
    in_open_clip = open_clip(f"{bare}.weight")
    if in_open_clip.third is None:  # there, q, k and v are one layer
        yield in_open_clip.name.removesuffix(".weight")
