"""Folders of small adapters for the embedded model, in tests."""

from functools import cache
from pathlib import Path

from deployments.adapters.targets import ModelTargets, targets_of_model
from deployments.engine.model_source import ModelSource
from tests.adapter_files import kohya_stem, lora, save
from tests.tiny_models import SHAPES_MODEL

SHAPES = ModelSource(str(SHAPES_MODEL))


@cache
def shapes_targets() -> ModelTargets:
    return targets_of_model(SHAPES)


def add(
    folder: Path, name: str, unet_rank: int = 4, text_rank: int = 0, metadata: dict[str, str] | None = None
) -> Path:
    """An adapter of one layer of each part that it has. name: its id"""
    model, tensors = shapes_targets(), {}
    for part, rank in (("unet", unet_rank), ("text_encoder", text_rank)):
        if rank:
            layer = next(name for name in model.parts[part] if name.endswith(("to_q", "q_proj")))
            for role, factor in lora(model.parts[part][layer], rank).items():
                tensors[f"{kohya_stem(part, layer)}.lora_{role}.weight"] = factor
    path = folder / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(path, tensors, metadata)
