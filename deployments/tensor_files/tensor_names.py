"""The names of a part's tensors in single files (the layout of Stability's `ldm`), by those in diffusers.

The same rules as in diffusers' scripts/convert_diffusers_to_original_stable_diffusion.py and, the other way
round, in diffusers.loaders.single_file_utils. By them, what a file lacks is known from its header alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Origin:
    """The tensor of a file that one of ours is made from.

    third: 0, 1 or 2 if it is that third of the rows, as q, k and v are of one tensor
    is_transposed: whether its two dimensions are swapped
    """

    name: str
    third: int | None = None
    is_transposed: bool = False


_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_MIDDLE = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


class UNetNames:
    """The names of a U-Net's tensors. names: all of them in diffusers"""

    def __init__(self, config: Mapping[str, Any], names: Collection[str]) -> None:
        self._layers: int = config["layers_per_block"]
        # In a block without attention, the upsampler takes its place.
        self._attended = {
            name.split(".")[1] for name in names if re.match(r"up_blocks\.\d+\.attentions", name)
        }

    def ldm(self, name: str) -> str:
        """The name in single files, without the prefix."""
        module, _, end = name.rpartition(".")
        if module in _UNET:
            return f"{_UNET[module]}.{end}"
        if name.startswith("mid_block."):
            _, kind, which, rest = name.split(".", 3)
            place = _MIDDLE.get(f"{kind}.{which}", name)  # longer ones are in no single file
            return f"middle_block.{place}.{_inner(kind, rest)}"
        found = _BLOCK.fullmatch(name)
        if found is None:
            return name
        side, block, kind, layer, rest = found.groups()
        first = int(block) * (self._layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + 1 + self._layers}.0.op.{end}"
        if kind == "upsamplers":
            step = 2 if block in self._attended else 1
            return f"output_blocks.{first + self._layers}.{step}.{rest}"
        number = first + int(layer) + (side == "down")  # input_blocks.0 is the first convolution
        blocks = "input_blocks" if side == "down" else "output_blocks"
        return f"{blocks}.{number}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    module, _, end = rest.rpartition(".")
    return f"{_RESNET.get(module, module)}.{end}" if kind == "resnets" else rest


_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OLD_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_VAE_BLOCK = re.compile(
    r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(?:resnets\.(\d+)|(?:down|up)samplers\.0)\.(.+)"
)


def vae_ldm(name: str, num_blocks: int) -> str:
    """The name of a VAE's tensor in single files, without the prefix."""
    module, _, end = name.rpartition(".")
    if found := _VAE_BLOCK.fullmatch(name):
        coder, block, resnet, rest = found.groups()
        up = coder == "decoder"
        place = f"{coder}.up.{num_blocks - 1 - int(block)}" if up else f"{coder}.down.{block}"
        if resnet is None:
            return f"{place}.{'up' if up else 'down'}sample.{rest}"
        return f"{place}.block.{resnet}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
    if found := re.fullmatch(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d)\.(.+)", module):
        coder, kind, number, rest = found.groups()
        if kind == "resnets":
            rest = rest.replace("conv_shortcut", "nin_shortcut")
            return f"{coder}.mid.block_{int(number) + 1}.{rest}.{end}"
        return f"{coder}.mid.attn_1.{_VAE_ATTENTION.get(rest, rest)}.{end}"
    return name.replace("conv_norm_out", "norm_out")


def vae_old(name: str) -> str:
    """The name of a VAE's tensor in folders that diffusers wrote before its version 0.18."""
    module, _, end = name.rpartition(".")
    for new, old in _OLD_VAE_ATTENTION.items():
        if module.endswith(f"mid_block.attentions.0.{new}"):
            return f"{module.removesuffix(new)}{old}.{end}"
    return name


_OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_THIRDS = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}


def clip_names(name: str) -> Iterator[str]:
    """The names that a text encoder's tensor has, by the version of transformers that wrote it."""
    bare = name.removeprefix("text_model.")
    yield name
    yield f"text_model.{bare}"
    yield bare


def open_clip(name: str) -> Origin:
    """Where a text encoder's tensor is in OpenCLIP's layout, without the prefix."""
    name = name.removeprefix("text_model.")
    if name == "text_projection.weight":
        return Origin("text_projection", is_transposed=True)
    found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if found is None:
        return Origin(_OPEN_CLIP.get(name, name))
    layer, module, end = found.groups()
    place = f"transformer.resblocks.{layer}"
    if module in _THIRDS:
        return Origin(f"{place}.attn.in_proj_{end}", third=_THIRDS[module])
    return Origin(f"{place}.{_OPEN_CLIP_LAYER.get(module, module)}.{end}")
