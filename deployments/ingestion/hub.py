"""Fetches models from the Hugging Face hub: only the files of the parts that are served."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path, PurePath

from deployments.engine.model_source import ModelLoadError
from deployments.ingestion.model_entry import IngestionError, ModelToIngest

_PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")
_CONFIGS = ("model_index.json", "*/config.json", "scheduler/*", "tokenizer/*", "tokenizer_2/*")


def fetch_model(model: ModelToIngest) -> Path:
    """The model's folder in the hub's own cache. Raises IngestionError."""
    return _fetch(model.source, model.revision, model_patterns(model))


def model_patterns(model: ModelToIngest) -> list[str]:
    """Patterns of the names of the files that the model needs."""
    patterns = list(_CONFIGS)
    for part in _PARTS:
        if part != "vae" or model.vae is None:
            # A text encoder may have plain weights only.
            variants = {model.variant, None} if part.startswith("text_encoder") else {model.variant}
            names = (name for variant in variants for name in _weights(variant, model.allow_pickle))
            patterns += (f"{part}/{name}" for name in names)
    return patterns


def fetch_vae(hub_id: str, variant: str | None, allow_pickle: bool) -> Path:
    """The folder of a VAE, which has the hub id for itself or is in a model."""
    names = ["config.json", *(name for one in {variant, None} for name in _weights(one, allow_pickle))]
    folder = _fetch(hub_id, None, [*names, *(f"vae/{name}" for name in names)])
    return folder / "vae" if (folder / "vae").is_dir() else folder


def fetch_adapter(given: str) -> Path:
    """An adapter's file in the hub's own cache. given: owner/name/file.safetensors. Raises IngestionError."""
    owner, name, *file = given.split("/")
    return _fetch(f"{owner}/{name}", None, ["/".join(file)]) / "/".join(file)


@contextmanager
def named_by_hub_id(hub_id: str, folder: Path, revision: str | None = None) -> Iterator[None]:
    """Names the hub id in errors, and not its folder in the hub's own cache. Says where only pickles are."""
    try:
        yield
    except ModelLoadError as error:
        lines = str(error).replace(str(folder), hub_id).splitlines()
        raise IngestionError("\n".join(_with_pickles(lines, hub_id, revision))) from error


def _with_pickles(lines: Iterable[str], hub_id: str, revision: str | None) -> Iterator[str]:
    lacking = re.compile(rf"{re.escape(hub_id)}/?(\w*) has no weights")
    for line in lines:
        found = lacking.match(line)
        if found and _has_pickles(hub_id, revision, found[1] or "vae"):
            yield (
                f"{line}; the hub has them as pickles only, which can run any code when they are loaded: set "
                "allow_pickle if you trust their author"
            )
        else:
            yield line


def _has_pickles(hub_id: str, revision: str | None, part: str) -> bool:
    """Whether the hub has a part as pickles only. part: its folder; a VAE may also be alone"""
    hub = import_module("huggingface_hub")
    try:
        paths = [PurePath(name) for name in hub.list_repo_files(hub_id, revision=revision)]
    except (OSError, ValueError):  # what is wrong with the model is told without it
        return False
    folders = (part, "") if part == "vae" else (part,)
    suffixes = {path.suffix for path in paths if "/".join(path.parent.parts) in folders}
    return ".bin" in suffixes and ".safetensors" not in suffixes


def _weights(variant: str | None, allow_pickle: bool) -> Iterator[str]:
    """Patterns of the names of a part's weights: one file, or shards with their index."""
    stems = {"diffusion_pytorch_model": "safetensors", "model": "safetensors"}
    pickles = {"diffusion_pytorch_model": "bin", "pytorch_model": "bin"}
    for stem, end in (*stems.items(), *(pickles.items() if allow_pickle else ())):
        of = f"{stem}.{variant}" if variant else stem
        yield f"{of}.{end}"
        yield f"{of}-*-of-*.{end}"
        yield f"{stem}.{end}.index.{variant}.json" if variant else f"{stem}.{end}.index.json"


def _fetch(hub_id: str, revision: str | None, patterns: Iterable[str]) -> Path:
    hub = import_module("huggingface_hub")
    try:
        return Path(hub.snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:  # unknown model, no access or no network
        reason = str(error).strip().partition("\n")[0]
        raise IngestionError(f"{hub_id} cannot be fetched from the hub: {reason}") from error
