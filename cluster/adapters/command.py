"""`midstep adapters add|list|check`. A running server takes up what they change by itself."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import click

from cluster.adapters.survey import LocalAdapters
from cluster.config_errors import shown_config_errors
from cluster.models.files import give_name
from cluster.models.report import print_rows, size
from serve.adapter_folder import SUFFIX
from serve.adapter_survey import Surveyed
from serve.config.schema import ConfigError

_CONFIG = click.option(
    "-c",
    "--config",
    "config_file",
    type=Path,
    default="serve_config.yaml",
    show_default=True,
    help="The server's configuration file.",
)


@click.group()
def adapters() -> None:
    """Work with adapters (LoRAs).

    They are .safetensors files in a folder, which the key adapters.folder of the configuration names.
    """


@adapters.command()
@click.argument("source")
@click.option("--id", "adapter_id", help="Name that requests use; by default the file's name. May have /.")
@_CONFIG
@shown_config_errors()
def add(source: str, adapter_id: str | None, config_file: Path) -> None:
    """Check SOURCE and copy it into the folder of adapters.

    SOURCE is a .safetensors file, or where adapters.allow_remote is set a URL or a hub id.
    """
    local = LocalAdapters.of(config_file)
    name, path = _found(source, local)
    adapter_id = adapter_id.removesuffix(SUFFIX) if adapter_id is not None else Path(name).stem
    target = _target(local.folder, adapter_id)
    print(*_described(name, path, local), sep="\n")
    _copy(path, target)
    print(f"Copied to {target}. A running server takes {adapter_id!r} within seconds.")


@adapters.command()
@click.argument("source")
@_CONFIG
@shown_config_errors()
def check(source: str, config_file: Path) -> None:
    """Say what SOURCE is and which served models it fits, or what is wrong with it."""
    local = LocalAdapters.of(config_file)
    print(*_described(*_found(source, local), local), sep="\n")


@adapters.command("list")
@_CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@shown_config_errors()
def list_adapters(config_file: Path, as_json: bool) -> None:
    """List the adapters of the folder, also those that requests cannot name."""
    local = LocalAdapters.of(config_file)
    found = list(local.all())
    if as_json:
        print(json.dumps([_as_json(*one) for one in found]))
    elif found:
        print_rows(("id", "kind", "rank", "text rank", "size", "fits"), [_row(*one) for one in found])
    else:
        print(f"There are no adapters in {local.folder}; `midstep adapters add` adds one.")


def _found(source: str, local: LocalAdapters) -> tuple[str, Path]:
    """The name and the file of what is checked. Raises ConfigError."""
    if Path(source).is_file():
        return source, Path(source)
    fetched = local.fetched(source)
    return fetched.name, fetched.path


def _described(name: str, path: Path, local: LocalAdapters) -> Iterator[str]:
    """Lines on what a file is. Raises ConfigError if requests could not name it."""
    found = local.surveyed(path)
    if found.problem is not None or found.file is None:
        raise ConfigError(f"{name}: {found.problem}")
    yield f"{name}: can be used"
    yield f"fits    {', '.join(found.models)}"
    yield f"kind    {', '.join(found.file.kinds)}"
    yield from (f"rank    {rank} in {part}" for part, rank in found.file.ranks.items())
    yield f"size    {size(found.file.num_bytes)}"
    yield f"sha256  {local.adapters.files.digest(path)}"
    if found.trigger_words:
        yield f"words   {', '.join(found.trigger_words)}"


def _target(folder: Path, adapter_id: str) -> Path:
    """The file that an adapter gets. Raises ConfigError for an id that no file can have."""
    parts = adapter_id.split("/")
    if not adapter_id.isprintable() or any(not part or part.startswith(".") for part in parts):
        raise ConfigError(
            f"{adapter_id!r} cannot be an id: it is a path in the folder of adapters, such as stripes or "
            "styles/stripes, and no name in it begins with a dot"
        )
    target = folder.joinpath(*parts[:-1], f"{parts[-1]}{SUFFIX}")
    if target.exists():
        raise ConfigError(f"{target} is there already; choose another id (--id), or remove that file")
    return target


def _copy(source: Path, target: Path) -> None:
    """Copies a file so that nobody reads half of it. Makes its folder. Raises ConfigError."""
    part = target.with_name(
        f".{target.name}.{token_hex(8)}"
    )  # servers do not read names that begin with a dot
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, part)
            give_name(part, target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror or error}") from error


def _row(adapter_id: str, path: Path, found: Surveyed) -> tuple[str, ...]:
    fits = ", ".join(found.models) if found.problem is None else f"cannot be used: {found.problem}"
    num_bytes = size(path.stat().st_size)
    if (file := found.file) is None:
        return adapter_id, "", "", "", num_bytes, fits
    return adapter_id, ", ".join(file.kinds), str(file.unet_rank), str(file.text_rank), num_bytes, fits


def _as_json(adapter_id: str, path: Path, found: Surveyed) -> dict[str, Any]:
    file = found.file
    return {
        "id": adapter_id,
        "kinds": list(file.kinds) if file else [],
        "ranks": dict(file.ranks) if file else {},
        "size_bytes": path.stat().st_size,
        "family": found.family,
        "models": list(found.models),
        "title": found.title,
        "trigger_words": found.trigger_words,
        "problem": found.problem,
        "file": str(path),
    }
