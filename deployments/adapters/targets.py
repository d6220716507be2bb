"""The layers of a model that adapters may change, from its configurations alone. Importing it is fast."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from deployments.adapters.spellings import PREFIXES, text_spellings, unet_spellings
from deployments.engine.adapters import Target, targets_of
from deployments.engine.model_files import PIPELINES, UNET_FILE
from deployments.engine.model_source import ModelSource, part_config, pipeline_name

Shape = tuple[int, ...]
_MAX_KEPT = 16  # architectures; each takes 1 to 2 MB


@dataclass(frozen=True, slots=True)
class ModelTargets:
    """The layers of a model.

    parts: the layers that adapters may change, by the part of the model (unet, text_encoder, text_encoder_2),
        then by the layer's name in its module
    shapes: of all tensors, by part and then by their name in the module's state dict
    names: the layers by all of their spellings in files, for each part
    key: equal for equal architectures
    """

    parts: Mapping[str, Mapping[str, Target]]
    shapes: Mapping[str, Mapping[str, Shape]]
    names: Mapping[str, Mapping[str, str]]
    key: str

    def find(self, stem: str) -> tuple[str, str] | None:
        """The part and the layer that a file calls so. None if the model has no such layer."""
        for part, names in self.names.items():
            for prefix in PREFIXES[part]:
                if stem.startswith(prefix) and (module := names.get(stem[len(prefix) :])) is not None:
                    return part, module
        return None

    @property
    def text_width(self) -> int | None:
        """Width of the prompt embeddings that the U-Net reads, by which families differ."""
        layers = self.parts["unet"].items()
        return next((layer.num_inputs for name, layer in layers if name.endswith("attn2.to_k")), None)


def targets_of_model(source: ModelSource) -> ModelTargets:
    """The layers of a model's U-Net and text encoders. Reads no weights. Raises ModelLoadError."""
    configs = {"unet": part_config(source, UNET_FILE)}
    for part in PIPELINES[pipeline_name(source)]:
        configs[part] = part_config(source, f"{part}/config.json")
    return targets_of_configs(configs)


def targets_of_configs(configs: Mapping[str, Mapping[str, Any]]) -> ModelTargets:
    """As `targets_of_model`. configs: a configuration for each part. Raises ModelLoadError."""
    return _targets(json.dumps(configs, sort_keys=True))


@lru_cache(_MAX_KEPT)
def _targets(configs: str) -> ModelTargets:
    # Whoever only names the types needs no torch.
    from deployments.tensor_files.architectures import build_module  # noqa: PLC0415

    parts: dict[str, Mapping[str, Target]] = {}
    shapes: dict[str, Mapping[str, Shape]] = {}
    names: dict[str, Mapping[str, str]] = {}
    for part, config in json.loads(configs).items():
        module = build_module(part, config, f"{part}/config.json")
        parts[part] = targets_of(module)
        shapes[part] = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        is_unet = part == "unet"
        names[part] = unet_spellings(module.config, shapes[part]) if is_unet else text_spellings(shapes[part])
    key = hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()
    return ModelTargets(parts, shapes, names, key)
