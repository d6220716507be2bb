"""`midstep check FILE`, `midstep run FILE`, `midstep profile FILE`, `midstep plan FILE`,
`midstep rehearse FILE`, `midstep keys`, `midstep key NAME`, `midstep bench`, `midstep generate PROMPT` and
`midstep jobs`.

A Serve configuration file, checked strictly, and then served, its costs measured, the GPUs planned that it
needs, or tried on simulated ones; the table of the keys there are; a new API key; the load generator; and the
jobs of a server that runs. Ray Serve ignores keys of the file that it does not know; here each is an error
that names the nearest.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from cluster.client.command import main as client
from deployments.engine.models import ModelLoadError
from serve.api_keys import ApiKeyConfig, key_sha256, new_key
from serve.config import AppConfig
from serve.profile import profile
from serve.section import ConfigError, models_in, unknown_keys

IMPORT_PATH = "serve.app:build_app"


def check(path: Path) -> list[AppConfig]:
    """The file's applications of ours. Raises ConfigError for a file that cannot be served, with a line for
    each thing that is wrong."""
    try:
        data: Any = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: is not a mapping")
    problems = list(unknown_keys(ServeDeploySchema, data))
    all_args = [
        (f"applications[{index}].args", application.get("args") or {})
        for index, application in enumerate(data.get("applications") or [])
        if isinstance(application, dict) and application.get("import_path") == IMPORT_PATH
    ]
    for place, args in all_args:
        problems += _problems_of_args(args, place)
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return [AppConfig.model_validate(args) for _, args in all_args]


def _problems_of_args(args: Any, place: str) -> list[str]:
    if unknown := list(unknown_keys(AppConfig, args, f"{place}.")):
        return unknown
    try:
        model = AppConfig.model_validate(args).model
        model.source()
        model.known_cost()
    except ValidationError as error:
        return [f"{place}{_path(item['loc'])}: {item['msg']}" for item in error.errors()]
    except ConfigError as error:
        return [f"{place}.{error}"]
    return []


def _path(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def keys_table() -> str:
    """Every key of AppConfig with its default and meaning, as a Markdown table."""
    rows = [f"| `{key}` | {default} | {text} |" for key, default, text in _keys(AppConfig)]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _keys(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from _keys(type(default), f"{path}{name}.")
            continue
        shown = "required" if field.is_required() else f"`{json.dumps(default)}`"
        yield f"{path}{name}", shown, field.description or ""
        for item in models_in(field.annotation):
            yield from _keys(item, f"{path}{name}[].")


def _print_new_key(name: str) -> None:
    """Raises ConfigError for what cannot be a name."""
    key = new_key()
    try:
        client = ApiKeyConfig(name=name, key_sha256=key_sha256(key))
    except ValidationError as error:
        raise ConfigError(f"NAME: {error.errors()[0]['msg']}, but {name!r} was given") from error
    print(
        f"The key of {client.name}, which is kept nowhere and shown only now:\n\n{key}\n\n"
        "For the server's configuration, under `args`:\n\n"
        f'api_keys:\n  - name: "{client.name}"\n    key_sha256: "{client.key_sha256}"'
    )


def only_application(path: Path) -> AppConfig:
    """Of ours in the file. Raises ConfigError."""
    configs = check(path)
    if len(configs) != 1:
        raise ConfigError(
            f"{path}: {len(configs)} applications of {IMPORT_PATH} are in the file; one is needed"
        )
    return configs[0]


def write_profile(config: AppConfig, output: Path) -> None:
    """Raises ConfigError and ModelLoadError."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ray.serve").setLevel(logging.INFO)
    try:
        output.open("a").close()  # before the minutes that measuring takes
    except OSError as error:
        raise ConfigError(f"--output {output}: {error.strerror}") from error
    output.write_text(profile(config).model_dump_json(indent=2) + "\n")
    print(f"written to {output}; the key model.cost_model names it")


def _with_extra(command: str, argv: list[str]) -> None:
    """Commands that need what a server does not: they are imported only here."""
    try:
        if command == "bench":
            from cluster.bench.command import main as bench  # noqa: PLC0415

            bench(argv)
        elif command == "rehearse":
            from cluster.rehearsal.command import main as rehearse  # noqa: PLC0415

            rehearse(argv, only_application)
        else:
            from serve.planning.command import main as plan  # noqa: PLC0415

            plan(argv, only_application)
    except ModuleNotFoundError as error:
        sys.exit(
            f"midstep {command} needs {error.name}, which is not installed: "
            "pip install --constraint constraints.txt --editable '.[bench]'"
        )
    except (ConfigError, ModelLoadError) as error:
        sys.exit(str(error))


def main() -> None:
    if sys.argv[1:2] in (["bench"], ["plan"], ["rehearse"]):
        _with_extra(sys.argv[1], sys.argv[2:])  # have options of their own
        return
    if sys.argv[1:2] in (["generate"], ["jobs"]):
        client(sys.argv[1:])
        return
    parser = argparse.ArgumentParser(prog="midstep", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("keys", help="print the table of all keys")
    commands.add_parser("key", help="make an API key for a client").add_argument("name", metavar="NAME")
    commands.add_parser("bench", help="load a server and measure it")
    commands.add_parser("plan", help="say how many GPUs a load needs and what they cost, by simulation")
    commands.add_parser("rehearse", help="run a configuration on a local cluster of simulated GPUs")
    commands.add_parser("generate", help="make an image on a server and wait for it")
    commands.add_parser("jobs", help="submit|get|wait|cancel|list: work with a server's jobs")
    for name, text in (
        ("check", "check a file"),
        ("run", "check a file and serve it"),
        ("profile", "measure what its stages cost here, for its key model.cost_model"),
    ):
        commands.add_parser(name, help=text).add_argument("file", type=Path)
    commands.choices["profile"].add_argument("--output", type=Path, default=Path("cost_model.json"))
    arguments = parser.parse_args()
    if arguments.command == "keys":
        print(keys_table())
        return
    try:
        if arguments.command == "key":
            _print_new_key(arguments.name)
            return
        if arguments.command == "profile":
            write_profile(only_application(arguments.file), arguments.output)
            return
        check(arguments.file)
    except (ConfigError, ModelLoadError) as error:
        sys.exit(str(error))
    if arguments.command == "run":
        serve = Path(sys.executable).with_name("serve")
        os.execv(serve, [str(serve), "run", str(arguments.file)])
    print(f"{arguments.file}: ok")


if __name__ == "__main__":
    main()
