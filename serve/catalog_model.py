"""A model of the catalog that can be served: its files are read in, and its defaults go with it."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from deployments.engine.fingerprint import model_ref
from deployments.engine.model_files import UNET_FILE
from deployments.engine.model_source import (
    ModelInfo,
    ModelLoadError,
    ModelRef,
    ModelSource,
    load_model_info,
    part_config,
    pipeline_name,
)
from deployments.ingestion.cache import Cache, read_manifest
from deployments.ingestion.ingest import known, source_key, sources_of
from serve.config.app import AppConfig
from serve.config.catalog import CatalogEntry, effective_defaults
from serve.config.schema import ConfigError


@dataclass(frozen=True)
class CatalogModel:
    """A model that was read in and checked.

    size_bytes: of its files, also of those that other models share; family: sd1, sd2 or sdxl, and
        `-inpainting` after it if it needs a mask
    """

    entry: CatalogEntry
    ref: ModelRef
    info: ModelInfo
    size_bytes: int
    family: str


def known_model(config: AppConfig, entry: CatalogEntry, cache: Path) -> CatalogModel | None:
    """The model if it was read in before; None if it is to be read first.

    Raises ConfigError, with a line per key, if it cannot be served.
    """
    effective_defaults(config.defaults, entry.defaults)  # nothing is read in that would be refused then
    if is_served_in_place(config, entry):
        return _of_its_own(checked_model(config, entry, Path(entry.source)))
    folder = known(entry.to_ingest(), cache)
    if folder is None or (config.model.dtype == "float16" and read_manifest(folder)["beyond_float16"]):
        return None  # to read it in again refuses what was read in for another precision
    return checked_model(config, entry, folder)


def is_served_in_place(config: AppConfig, entry: CatalogEntry) -> bool:
    """Whether nothing is to be read in: simulated devices need a folder's configurations only."""
    return config.model.device == "simulated" and (Path(entry.source) / "model_index.json").is_file()


def is_outdated(model: CatalogModel, key: str | None, cache: Path) -> bool:
    """Whether a model is to be read in again: its files have left the cache, or its source has changed.

    Marks it as used in the cache. key: of its source when it was read in. Raises OSError.
    """
    folder, to_ingest = Path(model.ref.source.path), model.entry.to_ingest()
    if cache in folder.parents and not Cache(cache).touch(folder):
        return True
    sources = map(Path, sources_of(to_ingest))
    is_there = all(path.exists() for path in sources if path.is_absolute())  # else it is served as it was
    return key is not None and is_there and source_key(to_ingest) != key


def checked_model(config: AppConfig, entry: CatalogEntry, folder: Path) -> CatalogModel:
    """The model whose files are in this folder. Reads no weights.

    Raises ConfigError, with a line per key, if it or the limits do not allow its defaults.
    """
    source = ModelSource(str(folder), embeddings=entry.embeddings_folder)
    try:
        info = load_model_info(source)
    except ModelLoadError as error:
        own = f"model {source.path!r}: "
        lines = (line.removeprefix(own) for line in str(error).splitlines())
        raise ConfigError("\n".join(f"source: {line}" for line in lines)) from error
    defaults = effective_defaults(config.defaults, entry.defaults)
    config.with_defaults(defaults).check_defaults_for(info)
    return CatalogModel(entry, model_ref(source), info, size_bytes_of(folder), family_of(source, info))


def family_of(source: ModelSource, info: ModelInfo) -> str:
    """The family of a model that load_model_info accepts."""
    if "XL" in pipeline_name(source):
        family = "sdxl"
    else:
        family = "sd2" if part_config(source, UNET_FILE).get("use_linear_projection") else "sd1"
    return f"{family}-inpainting" if info.needs_mask else family


def _of_its_own(model: CatalogModel) -> CatalogModel:
    """The model as another one than others with the same configurations: a simulation of many checkpoints
    names one folder in many files, and each of them takes its own room on a device. Text encoders and VAEs
    stay the same ones, as fine-tunes mostly share them."""
    digest, unet = (
        hashlib.sha256(f"{of} {model.entry.id}".encode()).hexdigest()
        for of in (model.ref.digest, model.ref.unet)
    )
    return replace(model, ref=replace(model.ref, digest=digest, unet=unet))


def size_bytes_of(folder: Path) -> int:
    """The size of all files. A model that was read in has links to its parts, which rglob does not follow."""
    folders = (folder, *(path.resolve() for path in folder.iterdir() if path.is_symlink()))
    paths = (path for one in folders for path in one.rglob("*"))
    return sum(path.stat().st_size for path in paths if path.is_file())
