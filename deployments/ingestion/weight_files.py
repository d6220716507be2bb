"""Finds the files of a part's weights in a diffusers folder: variants, shards and pickles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from deployments.ingestion.model_entry import IngestionError
from deployments.tensor_files.headers import read_header
from deployments.tensor_files.weights import PickledFiles, SafetensorsFiles, TensorFiles

# What CLIP's tokenizer reads; anything else in its folder is not copied.
_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """A tokenizer's files by their names."""
    return {name: folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()}


def open_weights(folder: Path, stem: str, variants: Sequence[str | None], allow_pickle: bool) -> TensorFiles:
    """The files of a part's weights. stem: of their names; variants: to look for, in order

    Raises IngestionError if there are none, or only pickles that are not allowed.
    """
    if (found := _first(folder, stem, variants, ("safetensors", "safetensors.index.json"))) is not None:
        return SafetensorsFiles([read_header(path) for path in _shards(found)], str(found))
    stem = stem if stem.startswith("diffusion") else "pytorch_model"
    found = _first(folder, stem, variants, ("bin", "bin.index.json"))
    if found is not None and allow_pickle:
        return PickledFiles(_shards(found), str(found))
    if found is not None:
        raise IngestionError(
            f"{found} is a pickle, which can run any code when it is loaded, and there is no safetensors "
            "file: convert it, or set allow_pickle if you trust its author"
        )
    others = ", ".join(sorted(path.name for path in folder.glob("*.safetensors")))
    variant = f" of the variant {variants[0]!r}" if variants[0] else ""
    raise IngestionError(f"{folder} has no weights{variant}" + (f"; there is {others}" if others else ""))


def _first(folder: Path, stem: str, variants: Sequence[str | None], ends: Sequence[str]) -> Path | None:
    for variant in variants:
        for end in ends:
            before, dot, last = f"{stem}.{end}".rpartition(".")
            path = folder / (f"{before}.{variant}{dot}{last}" if variant else f"{stem}.{end}")
            if path.is_file():
                return path
    return None


def _shards(found: Path) -> list[Path]:
    if found.suffix != ".json":
        return [found]
    try:
        names = set(json.loads(found.read_bytes())["weight_map"].values())
        paths = [found.parent / name for name in sorted(names)]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise IngestionError(f"{found} is not an index of files with weights") from error
    for path in paths:
        if path.parent != found.parent or path.name == "..":
            raise IngestionError(f"{found} lists {path}, which is not in its folder: fetch the model anew")
        if not path.is_file():
            raise IngestionError(f"{path} is not there, although {found.name} lists it")
    return paths
