"""The parts of a model without their weights: configurations, and the shapes of their tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import diffusers
import torch
import transformers

from deployments.tensor_files.errors import TensorFileError

Shape = tuple[int, ...]

CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}
# What says nothing about the pictures, and differs among files with equal weights.
_VOLATILE = frozenset({"torch_dtype", "dtype", "transformers_version", "architectures"})


@dataclass(frozen=True, slots=True)
class Architecture:
    """A part's complete configuration, and the shapes of its tensors by their names."""

    part: str
    config: Mapping[str, Any]
    shapes: Mapping[str, Shape]

    @property
    def num_parameters(self) -> int:
        return sum(prod(shape) for shape in self.shapes.values())


def architecture(part: str, config: Mapping[str, Any], where: str) -> Architecture:
    """The part as its library builds it, without weights.

    where: the configuration's file. Raises TensorFileError.
    """
    module = build_module(part, config, where)
    if part.startswith("text_encoder"):
        known = _text_keys()
        full = {key: value for key, value in module.config.to_dict().items() if key in known}
        full["architectures"] = [CLASSES[part]]
    else:
        full = dict(module.config) | {"_class_name": CLASSES[part]}
    kept = {key: value for key, value in full.items() if not key.startswith("_") or key == "_class_name"}
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return Architecture(part, json.loads(json.dumps(kept, sort_keys=True)), shapes)


def build_module(part: str, config: Mapping[str, Any], where: str) -> Any:
    """The part's module on torch's meta device, which has shapes only. Raises TensorFileError."""
    try:
        with torch.device("meta"):
            if part.startswith("text_encoder"):
                known = _text_keys()
                given = {key: value for key, value in config.items() if key in known}
                return getattr(transformers, CLASSES[part])(transformers.CLIPTextConfig(**given))
            return getattr(diffusers, CLASSES[part]).from_config(dict(config))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise TensorFileError(f"{where}: no {CLASSES[part]} can be built of it: {error}") from error


def _text_keys() -> frozenset[str]:
    """The keys of a text encoder's configuration that say something about its pictures."""
    return frozenset(transformers.CLIPTextConfig().to_dict()) - _VOLATILE
