"""Ingests a model: `ingest` finds it in the cache or builds it there, `known` only looks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from deployments.ingestion.cache import Cache, read_manifest
from deployments.ingestion.model_entry import IngestionError, ModelToIngest
from deployments.tensor_files.errors import TensorFileError

__all__ = ["Cache", "IngestionError", "ModelToIngest", "ingest", "known", "source_key", "sources_of"]

_VERSION = 1  # raise it where equal files would become another model
_SUFFIXES = frozenset({".json", ".txt", ".safetensors", ".bin"})


def _no_progress(what: str, share: float) -> None:
    """The default for callers that do not want to know."""


def known(model: ModelToIngest, cache: Path) -> Path | None:
    """The model's folder if it was ingested before and its source files have not changed.

    It reads no weights. A hub id counts as unchanged: to follow a branch, name its commit as the revision.
    """
    return Cache(cache).find(source_key(model))


def ingest(
    model: ModelToIngest,
    cache: Path,
    dtype: str = "auto",
    progress: Callable[[str, float], None] = _no_progress,
) -> Path:
    """The model's finished diffusers folder in the cache. Only the first call reads weights.

    dtype: auto, float32, bfloat16 or float16; with float16, values that it does not have are refused
    progress: is called with what is being done and the share that is done, from 0 to 1
    Raises IngestionError with the reasons why the model cannot be used.
    """
    store, key = Cache(cache), source_key(model)
    try:
        with store.locked(key, on_wait=lambda: progress("waiting for another process", 0.0)):
            folder = store.find(key)
            if folder is None:
                folder = _build(model, store, key, dtype, progress)
            elif dtype == "float16":
                _refuse_beyond_float16(folder, model)
    except TensorFileError as error:
        raise IngestionError(str(error)) from error
    except OSError as error:
        raise IngestionError(f"{model.source} cannot be ingested into {cache}: {error}") from error
    progress("done", 1.0)
    return folder


def _build(
    model: ModelToIngest, store: Cache, key: str, dtype: str, progress: Callable[[str, float], None]
) -> Path:
    from safetensors import SafetensorError  # noqa: PLC0415

    # Callers that only look need no torch.
    from deployments.ingestion.building import build, model_index, plan  # noqa: PLC0415

    progress("looking", 0.0)
    planned = plan(model, progress)
    with store.staging(key) as staging:
        try:
            manifest = build(planned, store, staging, dtype, progress)
        except SafetensorError as error:  # as when the disk is full
            raise IngestionError(f"{model.source} cannot be ingested into {store.folder}: {error}") from error
        if source_key(model) != key:
            raise IngestionError(f"{model.source} changed while it was read; it is tried again")
        return store.commit(key, staging, manifest, model_index(planned), planned.scheduler)


def _refuse_beyond_float16(folder: Path, model: ModelToIngest) -> None:
    from deployments.ingestion.building import beyond_float16  # noqa: PLC0415

    if beyond := read_manifest(folder)["beyond_float16"]:
        raise IngestionError(beyond_float16(f"{model.source}, {beyond[0]}"))


def source_key(model: ModelToIngest) -> str:
    """A digest of the entry, and of the sizes and times of its source files. Raises OSError."""
    files = [f"{path} {_stamp(path)}" for source in sources_of(model) for path in _files(Path(source))]
    # Without anything to fuse, keys are as they were before there was such a thing.
    entry = {key: value for key, value in asdict(model).items() if key != "fuse" or value}
    return hashlib.sha256(json.dumps([_VERSION, entry, files]).encode()).hexdigest()


def sources_of(model: ModelToIngest) -> list[str]:
    """All that the model is made of: paths and hub ids."""
    given = (model.source, model.vae, model.config, *(adapter for adapter, _ in model.fuse))
    return [source for source in given if source]


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
    elif source.is_dir():
        # Parts may be links to folders, which rglob does not follow below the folder that it is given.
        for entry in sorted(source.iterdir()):
            paths = sorted(entry.resolve().rglob("*")) if entry.is_dir() else [entry]
            yield from (path for path in paths if path.suffix in _SUFFIXES and path.is_file())


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"
