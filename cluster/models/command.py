"""`midstep models add|remove|list|check`. A running server takes up what they change by itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cluster.config_errors import shown_config_errors
from cluster.models.files import check_names, entry_text, file_of, id_of_source, new_entry, write_new
from cluster.models.reading import read_in
from cluster.models.report import as_json as listed_as_json
from cluster.models.report import description, print_table
from cluster.models.survey import LocalCatalog
from serve.config.catalog import CatalogEntry, EntryDefaults
from serve.config.schema import ConfigError

Command = Callable[..., None]

_CONFIG = click.option(
    "-c",
    "--config",
    "config_file",
    type=Path,
    default="serve_config.yaml",
    show_default=True,
    help="The server's configuration file.",
)


def _read_default(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str | None]:
    """Reads "key=value" for each; `null` stands for none."""
    defaults: dict[str, str | None] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE, such as num_inference_steps=28")
        defaults[key.strip()] = None if value.strip() == "null" else value
    return defaults


def _with_source(command: Command) -> Command:
    """Adds SOURCE and the options on how it is read, by the names of the keys in the catalog's files."""
    options = (
        click.argument("source"),
        click.option("--id", help="Name that clients use; by default the source's name."),
        click.option("--alias", "aliases", multiple=True, help="Another name; may be given again."),
        click.option("--revision", help="Revision of a hub id."),
        click.option("--variant", help="Weight variant, such as fp16."),
        click.option("--vae", help="Another VAE: a file, a folder or a hub id."),
        click.option(
            "--prediction-type", type=click.Choice(["auto", "epsilon", "v_prediction"]), help="Of the U-Net."
        ),
        click.option(
            "--zero-terminal-snr/--no-zero-terminal-snr",
            default=None,
            help="Whether the noise schedule ends without any signal; by default as the source says.",
        ),
        click.option(
            "--allow-pickle", is_flag=True, default=None, help="Read pickles too, which can run any code."
        ),
        click.option(
            "--config-folder", "config", help="Folder with configurations for an unknown single file."
        ),
        click.option("--embeddings-folder", help="Folder of textual inversions."),
        click.option(
            "--default",
            "defaults",
            multiple=True,
            metavar="KEY=VALUE",
            callback=_read_default,
            help=f"Default for requests: {', '.join(EntryDefaults.model_fields)}. May be given again.",
        ),
        _CONFIG,
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def models() -> None:
    """Work with the catalog of models.

    The catalog is a folder of small YAML files, which the key catalog.folder of the configuration names.
    """


@models.command()
@_with_source
@shown_config_errors()
def add(source: str, config_file: Path, id: str | None, **keys: Any) -> None:
    """Read SOURCE in and add it to the catalog.

    SOURCE is a single .safetensors file, a folder in diffusers format or a hub id.
    """
    catalog, given = LocalCatalog.of(config_file), _given(source, keys)
    entry = new_entry(id if id is not None else id_of_source(source), given)
    file = catalog.folder / f"{entry.id}.yaml"
    check_names(catalog, entry)
    _read_and_describe(catalog, entry)
    check_names(catalog, entry)  # again: it may have taken minutes
    write_new(file, entry_text(entry, given))
    print(f"Written to {file}. A running server serves {entry.id!r} within seconds.")


@models.command()
@_with_source
@shown_config_errors()
def check(source: str, config_file: Path, id: str | None, **keys: Any) -> None:
    """Read SOURCE into the cache and say what is in it, without adding it to the catalog."""
    catalog = LocalCatalog.of(config_file)
    entry = new_entry(id if id is not None else id_of_source(source), _given(source, keys))
    _read_and_describe(catalog, entry)
    print(f"{entry.source} can be served; `midstep models add` adds it.")


@models.command()
@click.argument("id")
@_CONFIG
@shown_config_errors()
def remove(id: str, config_file: Path) -> None:
    """Remove the model ID from the catalog."""
    file = file_of(LocalCatalog.of(config_file), id)
    try:
        file.unlink()
    except OSError as error:
        raise ConfigError(f"{file} cannot be removed: {error.strerror}") from error
    print(
        f"Removed {file}. A running server stops taking requests for {id!r} within seconds; jobs that it "
        "has accepted still finish."
    )


@models.command("list")
@_CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@shown_config_errors()
def list_models(config_file: Path, as_json: bool) -> None:
    """List the catalog's models, also those that a server refuses."""
    catalog = LocalCatalog.of(config_file)
    all_listed = list(catalog.listed())
    if as_json:
        print(json.dumps([listed_as_json(listed) for listed in all_listed]))
    elif all_listed:
        print_table(all_listed)
    else:
        print(f"There are no models in {catalog.folder}; `midstep models add` adds one.")


def _given(source: str, keys: dict[str, Any]) -> dict[str, Any]:
    """The keys of the file that were given."""
    given = {key: value for key, value in keys.items() if value is not None and value not in ((), {})}
    if "aliases" in given:
        given["aliases"] = list(given["aliases"])
    return {"source": source, **given}


def _read_and_describe(catalog: LocalCatalog, entry: CatalogEntry) -> None:
    others = catalog.ready()
    model = read_in(catalog, entry)
    print(f"{entry.source}: can be read", *description(model, others), sep="\n")
