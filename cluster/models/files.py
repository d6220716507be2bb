"""Writes and finds the files of the catalog's folder."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

import yaml

from cluster.models.survey import LocalCatalog
from serve.config.catalog import CatalogEntry
from serve.config.catalog_files import SUFFIXES, name_clashes, parse_entry
from serve.config.schema import ConfigError

_PATHS = ("source", "vae", "config", "embeddings_folder")


def id_of_source(source: str) -> str:
    """A source's name as an id: a file's without its ending, or the last part of a folder or a hub id."""
    path = Path(source)
    name = path.stem if path.suffix in (".safetensors", ".ckpt") else path.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-")


def new_entry(id: str, given: Mapping[str, Any]) -> CatalogEntry:
    """The entry of these keys, whose relative paths are in the working folder. Raises ConfigError."""
    return parse_entry({"id": id, **given}, Path.cwd() / "entry.yaml")


def entry_text(entry: CatalogEntry, given: Mapping[str, Any]) -> str:
    """The file of an entry: the keys that were given, with absolute paths."""
    keys = {**given, **{key: getattr(entry, key) for key in _PATHS if key in given}}
    if "defaults" in keys:
        keys["defaults"] = entry.defaults.model_dump(exclude_unset=True)
    return yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)


def check_names(catalog: LocalCatalog, entry: CatalogEntry) -> None:
    """Raises ConfigError if a name of a new entry is taken."""
    owners = catalog.owners()
    for name in (entry.id, *entry.aliases):
        if name in owners:
            raise ConfigError(f"{name!r} is taken: it is a name of {owners[name]}; choose another (--id)")
    if clash := name_clashes(catalog.config.model, {(new := catalog.folder / f"{entry.id}.yaml"): entry}):
        raise ConfigError(clash[new])
    for suffix in SUFFIXES:
        if (file := catalog.folder / f"{entry.id}{suffix}").exists():
            raise ConfigError(_is_there(file))


def write_new(file: Path, text: str) -> None:
    """Writes a file so that nobody reads half of it. Makes its folder. Raises ConfigError if it is there."""
    part = file.with_name(f".{file.name}.{token_hex(8)}")  # servers do not read names that begin with a dot
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(text)
            give_name(part, file)
        finally:
            part.unlink(missing_ok=True)
    except FileExistsError as error:
        raise ConfigError(_is_there(file)) from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror or error}") from error


def _is_there(file: Path) -> str:
    return f"{file} is there already; choose another id (--id), or remove that file"


def give_name(part: Path, file: Path) -> None:
    """Raises FileExistsError rather than replace what another command has just written."""
    try:
        os.link(part, file)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if file.exists():
            raise
        os.replace(part, file)


def file_of(catalog: LocalCatalog, id: str) -> Path:
    """The file of the model with this id. Raises ConfigError if there is none, or more than one."""
    entries = catalog.entries()
    ids = {
        file: entry.id if isinstance(entry, CatalogEntry) else file.stem for file, entry in entries.items()
    }
    files = [file for file, its_id in ids.items() if its_id == id]
    if len(files) == 1:
        return files[0]
    if files:
        names = " and ".join(file.name for file in files)
        raise ConfigError(f"{id!r} is the id in {names} of {catalog.folder}; delete the one that is too many")
    raise ConfigError(_nothing_called(catalog, id, entries, sorted(ids.values())))


def _nothing_called(
    catalog: LocalCatalog,
    id: str,
    entries: Mapping[Path, CatalogEntry | ConfigError],
    ids: Sequence[str],
) -> str:
    model = catalog.config.model
    if id in (model.id, *model.aliases):
        return f"{id!r} is the default model (model.id), which is not in the catalog"
    for entry in entries.values():
        if isinstance(entry, CatalogEntry) and id in entry.aliases:
            return f"{id!r} is an alias of {entry.id!r}; name the model by its id"
    nearest = difflib.get_close_matches(id, ids, n=1)
    hint = (
        f"; the nearest one is {nearest[0]!r}" if nearest else f"; there are {', '.join(ids)}" if ids else ""
    )
    return f"no model {id!r} is in {catalog.folder}{hint}"
