"""What is checked of a configuration before anything is deployed: its file, and that it suits its model.

Ray Serve ignores keys of its file that it does not know; here each is an error that names the nearest.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from deployments.engine.models import ModelInfo, load_model_info
from serve.capacity.config_problems import check_drain
from serve.config.app import AppConfig
from serve.config.schema import ConfigError, unknown_keys

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


def only_application(path: Path) -> AppConfig:
    """Of ours in the file. Raises ConfigError."""
    configs = check(path)
    if len(configs) != 1:
        raise ConfigError(
            f"{path}: {len(configs)} applications of {IMPORT_PATH} are in the file; one is needed"
        )
    return configs[0]


def checked_model_info(config: AppConfig) -> ModelInfo:
    """Of the model, which the configuration suits. Raises ConfigError and ModelLoadError."""
    info = load_model_info(config.model.source())
    config.check_for(info)
    check_drain(config, info)
    return info


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
