"""`midstep check FILE`, `midstep run FILE`, `midstep keys` and `midstep bench`.

A Serve configuration file, checked strictly, and then served; the table of the keys there are; and the load
generator. Ray Serve ignores keys that it does not know; here each is an error that names the nearest one.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from serve.config import AppConfig, ConfigError, unknown_keys

IMPORT_PATH = "serve.app:build_app"


def check(path: Path) -> None:
    """Raises ConfigError for a file that cannot be served, with a line for each thing that is wrong."""
    try:
        data: Any = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: is not a mapping")
    problems = list(unknown_keys(ServeDeploySchema, data))
    for index, application in enumerate(data.get("applications") or []):
        if isinstance(application, dict) and application.get("import_path") == IMPORT_PATH:
            problems += _problems_of_args(application.get("args") or {}, f"applications[{index}].args")
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))


def _problems_of_args(args: Any, place: str) -> list[str]:
    if unknown := list(unknown_keys(AppConfig, args, f"{place}.")):
        return unknown
    try:
        AppConfig.model_validate(args).model.source()
    except ValidationError as error:
        return [".".join([place, *map(str, item["loc"])]) + f": {item['msg']}" for item in error.errors()]
    except ConfigError as error:
        return [f"{place}.{error}"]
    return []


def keys_table() -> str:
    """Every key of AppConfig with its default and meaning, as a Markdown table."""
    rows = [f"| `{key}` | `{json.dumps(default)}` | {text} |" for key, default, text in _keys(AppConfig())]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _keys(section: BaseModel, path: str = "") -> Iterator[tuple[str, Any, str]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _keys(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value, field.description or ""


def _bench(argv: list[str]) -> None:
    try:
        # Only here, since a server needs none of what it draws with.
        from cluster.bench.command import main as bench  # noqa: PLC0415
    except ModuleNotFoundError as error:
        sys.exit(
            f"midstep bench needs {error.name}, which is not installed: "
            "pip install --constraint constraints.txt --editable '.[bench]'"
        )
    bench(argv)


def main() -> None:
    if sys.argv[1:2] == ["bench"]:
        _bench(sys.argv[2:])  # has options of its own
        return
    parser = argparse.ArgumentParser(prog="midstep", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("keys", help="print the table of all keys")
    commands.add_parser("bench", help="load a server and measure it")
    for name, text in (("check", "check a file"), ("run", "check a file and serve it")):
        commands.add_parser(name, help=text).add_argument("file", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "keys":
        print(keys_table())
        return
    try:
        check(arguments.file)
    except ConfigError as error:
        sys.exit(str(error))
    if arguments.command == "run":
        serve = Path(sys.executable).with_name("serve")
        os.execv(serve, [str(serve), "run", str(arguments.file)])
    print(f"{arguments.file}: ok")


if __name__ == "__main__":
    main()
