"""Files that are for no layer of this model, told by what they are."""

from __future__ import annotations

import re
from collections.abc import Mapping

from deployments.adapters.errors import AdapterFileError, listed
from deployments.adapters.keys import divide
from deployments.adapters.targets import ModelTargets
from deployments.tensor_files.headers import Header
from deployments.tensor_files.kinds import what_it_is

_FAMILIES: Mapping[int, str] = {768: "SD 1", 1024: "SD 2", 2048: "SDXL"}
_OTHER_KINDS = re.compile(
    r"(^|[._])(double_blocks|single_blocks|joint_blocks|single_transformer_blocks|joint_transformer_blocks)[._]\d"
    r"|^(transformer|lora_transformer)[._]"
)
_SECOND_TEXT_ENCODER = re.compile(r"^(lora_te2_|text_encoder_2\.|base_model\.model\.text_encoder_2\.)")
# What reads the prompt embeddings; without such a layer the family cannot be told.
_READS_TEXT = re.compile(r"attn2[._](processor\.)?to_[kv]$")
_READING_ROLES = {"down": -1, "lora_A": -1, "hada_w1_b": -1, "diff": -1}


def refuse_strangers(header: Header, model: ModelTargets) -> None:
    """Raises AdapterFileError for what is no adapter, and for an adapter of another family."""
    name = header.path.name
    if not any(divide(key) for key in header.tensors):
        what = what_it_is(header)
        keys = listed(sorted(header.tensors))
        raise AdapterFileError(
            f"{name} is {what}, not an adapter" if what else f"{name} is no adapter: it has {keys}"
        )
    if any(_OTHER_KINDS.search(key) for key in header.tensors):
        raise AdapterFileError(
            f"{name} is for another kind of model, such as Flux or Stable Diffusion 3; this model is "
            f"{_family(model.text_width)}"
        )
    width = _text_width(header)
    if width is not None and width != model.text_width:
        raise AdapterFileError(f"{name} is for {_family(width)}; this model is {_family(model.text_width)}")
    if "text_encoder_2" not in model.parts and any(_SECOND_TEXT_ENCODER.match(key) for key in header.tensors):
        raise AdapterFileError(
            f"{name} is for a model with two text encoders, such as SDXL; this model is "
            f"{_family(model.text_width)}"
        )


def _family(width: int | None) -> str:
    return _FAMILIES.get(width or 0, f"one whose U-Net reads prompts {width} wide")


def _text_width(header: Header) -> int | None:
    for key, tensor in header.tensors.items():
        divided = divide(key)
        if divided is None or not _READS_TEXT.search(divided[0]) or divided[1] not in _READING_ROLES:
            continue
        if len(tensor.shape) > 1:
            return tensor.shape[1]
    return None
