"""`midstep check FILE` and `midstep run FILE`: a Serve configuration file, checked strictly and then served.

Ray Serve ignores keys that it does not know; here each is an error that names the nearest one.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="midstep", description=__doc__)
    parser.add_argument("command", choices=["check", "run"])
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
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
