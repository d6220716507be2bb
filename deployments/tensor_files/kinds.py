"""Tells what a file is that was not expected where it is, by the names in its header."""

from __future__ import annotations

import re
from collections.abc import Mapping

from deployments.tensor_files.headers import Header

UNET_PREFIX = "model.diffusion_model."
EMA_PREFIX = "model_ema."

# The first pattern that a name of the file has tells what it is.
_OTHER_MODELS: Mapping[str, str] = {
    r"(^|\.)double_(blocks|layers)\.\d": "a Flux model or one of its kind",
    r"(^|\.)joint_(blocks|transformer_blocks)\.\d|(^|\.)x_embedder\.proj\.": "a Stable Diffusion 3 model",
    r"(^|\.)single_transformer_blocks\.\d": "a Flux model or one of its kind",
    r"^control_model\.|(^|\.)input_hint_block\.|^controlnet_": "a ControlNet",
    r"lora[._](up|down|A|B)\b|^lora_|\.(hada_w1_a|lokr_w[12]|oft_(blocks|diag)|dora_scale)\b": "a LoRA or "
    "another adapter",
    r"motion_modules\.": "a motion module for videos",
    r"^(clip_txt_mapper|image_proj|ip_adapter)\.": "an IP-adapter or a part of another model",
    r"^(emb_params|string_to_param|clip_[lg]$)": "a textual inversion",
}
_ALONE: Mapping[str, str] = {
    r"^((first_stage_model|vae)\.)?(encoder|decoder)\.(conv_in|conv_out|mid)": "a VAE alone: give it as the "
    "model's `vae`",
    r"(^|\.)(text_model|transformer\.resblocks|encoder\.block)\.": "a text encoder alone",
    r"^(model\.diffusion_model\.)?(down_blocks|input_blocks)\.": "a U-Net alone, or of a "
    "layout that is not known",
}


def what_it_is(header: Header) -> str | None:
    """What a file is that is no adapter, as words behind "is". None if it is not known."""
    if any(name.startswith((UNET_PREFIX, EMA_PREFIX)) for name in header.tensors):
        return "a whole checkpoint"
    return other_model(header) or lone_part(header)


def other_model(header: Header) -> str | None:
    """What it is if it is no Stable Diffusion checkpoint."""
    return _first_match(header, _OTHER_MODELS)


def lone_part(header: Header) -> str | None:
    """What it is if it is one part of a checkpoint."""
    return _first_match(header, _ALONE)


def _first_match(header: Header, kinds: Mapping[str, str]) -> str | None:
    for pattern, what in kinds.items():
        found = re.compile(pattern)
        if any(found.search(name) for name in header.tensors):
            return what
    return None
