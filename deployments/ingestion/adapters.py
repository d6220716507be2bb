"""The adapters that are fused into a model while it is read in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from deployments.adapters.errors import AdapterFileError
from deployments.adapters.fusing import fuse
from deployments.adapters.resolving import open_adapter
from deployments.adapters.targets import ModelTargets, targets_of_configs
from deployments.ingestion.hub import fetch_adapter
from deployments.ingestion.model_entry import HUB_FILE, IngestionError
from deployments.ingestion.parts import Part

Files = Sequence[tuple[Path, float]]


def with_adapters(parts: Sequence[Part], given: Sequence[tuple[str, float]]) -> list[Part]:
    """The parts whose tensors have the adapters in them once they are read. Reads headers only.

    given: as in `ModelToIngest.fuse`. Raises IngestionError, with a line for each adapter that does not fit.
    """
    if not given:
        return list(parts)
    configs = {part.architecture.part: part.architecture.config for part in parts}
    model = targets_of_configs({part: config for part, config in configs.items() if part != "vae"})
    files: list[tuple[Path, float]] = []
    changed: set[str] = set()
    problems: list[str] = []
    for index, (adapter, scale) in enumerate(given):
        try:
            path = _file(adapter)
            changed |= {layer.part for layer in open_adapter(path, model)[1]}
            files.append((path, scale))
        except (AdapterFileError, IngestionError) as error:
            problems.append(f"fuse[{index}].adapter: {error}")
    if problems:
        raise IngestionError("\n".join(problems))
    return [
        replace(part, change=partial(_merge, part.architecture.part, files, model))
        if part.architecture.part in changed
        else part
        for part in parts
    ]


def _merge(part: str, files: Files, model: ModelTargets, tensors: dict[str, torch.Tensor]) -> None:
    try:
        fuse(part, tensors, files, model)
    except AdapterFileError as error:
        raise IngestionError(f"fuse: {error}") from error


def _file(given: str) -> Path:
    path = Path(given)
    if path.is_absolute() or path.is_file():
        return path
    if not HUB_FILE.fullmatch(given):
        raise IngestionError(
            f"{given!r} is no file; a path is allowed, or a file of the hub: owner/name/file.safetensors"
        )
    return fetch_adapter(given)
