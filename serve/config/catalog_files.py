"""Reads the files of the catalog's folder. Every problem is a sentence that begins with the key."""

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from deployments.ingestion.model_entry import HUB_FILE
from serve.config.catalog import CatalogEntry
from serve.config.model import PROJECT_FOLDER, ModelConfig
from serve.config.schema import ConfigError, expanded, unknown_keys
from serve.config.sentences import sentences

SUFFIXES = (".yaml", ".yml")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


def entry_files(folder: Path) -> list[Path]:
    """The files of models, in order. Raises OSError if the folder cannot be read."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in SUFFIXES and not path.name.startswith(".") and _may_be_file(path)
    )


def _may_be_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # to read it tells why
        return True


def read_entry(file: Path) -> CatalogEntry:
    """The model that a file describes, with absolute paths. Reads nothing of the model itself.

    Raises ConfigError, with a line per key.
    """
    try:
        data: Any = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the loader raises much: of dates, numbers, tags and depth too
        raise ConfigError(f"is not YAML: {error}") from error
    return parse_entry(data, file)


def parse_entry(data: Any, file: Path) -> CatalogEntry:
    """The model that these keys describe in this file, which need not exist. Raises ConfigError."""
    if not isinstance(data, dict):
        raise ConfigError("is empty; it needs the key source" if data is None else "is not a mapping of keys")
    if unknown := list(unknown_keys(CatalogEntry, data)):
        raise ConfigError("\n".join(unknown))
    data = {"id": file.stem} | data
    try:
        entry = CatalogEntry.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_with_id_in_words(sentences(error, data), data["id"]))) from error
    places: dict[str, Any] = {"source": _source("source", entry.source, file.parent)}
    if entry.vae is not None:
        places["vae"] = _source("vae", entry.vae, file.parent)
    for key in ("config", "embeddings_folder"):
        if (given := getattr(entry, key)) is not None:
            places[key] = _folder(key, given, file.parent)
    places["fuse"] = tuple(
        fused.model_copy(update={"adapter": _adapter(f"fuse[{index}].adapter", fused.adapter, file.parent)})
        for index, fused in enumerate(entry.fuse)
    )
    return entry.model_copy(update=places)


def _with_id_in_words(problems: list[str], given: object) -> list[str]:
    """Without the pattern that pydantic shows."""
    return [
        f"id: {given!r} was given; up to 100 letters, digits and . _ - are allowed, beginning with a letter "
        "or digit"
        if problem.startswith("id: String should match")
        else problem
        for problem in problems
    ]


def name_clashes(model: ModelConfig, entries: Mapping[Path, CatalogEntry]) -> dict[Path, str]:
    """A sentence for each file whose id or aliases belong to another model.

    model: the default model, which keeps its names. Ids go before aliases: an alias never takes an id. Of two
    files the one that is called like its id keeps a name, then the first by name: so it is the same one on
    every replica, whichever file it read first.
    """
    owners = dict.fromkeys((model.id, *model.aliases), "the default model (model.id or model.aliases)")
    clashes: dict[Path, str] = {}
    order = sorted(entries, key=lambda file: (entries[file].id != file.stem, file))
    for file in order:
        if (id := entries[file].id) in owners:
            clashes[file] = f"id: {id!r} is a name of {owners[id]}"
        else:
            owners[id] = file.name
    for file in order:
        entry = entries[file]
        twice = [name for name, count in Counter((entry.id, *entry.aliases)).items() if count > 1]
        taken = [
            f"aliases: {name!r} is a name of {owners[name]}"
            for name in entry.aliases
            if owners.get(name, file.name) != file.name
        ]
        if file in clashes or taken:
            clashes[file] = "\n".join([*filter(None, [clashes.get(file)]), *taken])
        elif twice:
            clashes[file] = f"aliases: {twice[0]!r} is given twice"
        else:
            owners |= dict.fromkeys(entry.aliases, file.name)
    return clashes


def _source(key: str, given: str, folder: Path) -> str:
    """An absolute path, or a hub id unchanged. Asks no hub."""
    if (found := _found(key, given, folder)) is not None:
        return str(found)
    roots = (folder, PROJECT_FOLDER)
    is_hub_id = _HUB_ID.fullmatch(given) and not given.endswith(_SINGLE_FILES)
    # What is inside a folder that exists was meant as a path.
    if is_hub_id and not ("/" in given and any(_is_folder((root / given).parent) for root in roots)):
        return given
    raise ConfigError(f"{key}: there is no file or folder {given!r}{_looked_in(key, given, folder)}")


def _adapter(key: str, given: str, folder: Path) -> str:
    """An absolute path, or a file of the hub unchanged. Asks no hub."""
    if (found := _found(key, given, folder)) is not None:
        return str(found)
    is_in_folder = any(_is_folder((root / given).parent) for root in (folder, PROJECT_FOLDER))
    if HUB_FILE.fullmatch(given) and not is_in_folder:
        return given
    raise ConfigError(f"{key}: there is no file {given!r}{_looked_in(key, given, folder)}")


def _is_folder(path: Path) -> bool:
    with suppress(OSError):
        return path.is_dir()
    return False


def _folder(key: str, given: str, folder: Path) -> str:
    found = _found(key, given, folder)
    if found is None or not _is_folder(found):
        raise ConfigError(f"{key}: there is no folder {given!r}{_looked_in(key, given, folder)}")
    return str(found)


def _found(key: str, given: str, folder: Path) -> Path | None:
    path = expanded(key, given)
    roots = (folder.absolute(), PROJECT_FOLDER)
    try:
        return next((found for root in roots if (found := root / path).exists()), None)
    except OSError as error:  # a name that is too long, no permission, or a disk that is away
        raise ConfigError(f"{key}: {given!r} cannot be looked at: {error.strerror or error}") from error


def _looked_in(key: str, given: str, folder: Path) -> str:
    if expanded(key, given).is_absolute():
        return ""
    return f" in {folder.absolute()} or in {PROJECT_FOLDER}"
