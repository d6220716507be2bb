"""Checks of a configuration before anything is deployed: its file, and whether it suits its model.

Ray Serve ignores unknown keys in its file. Here each is an error that names the nearest known key.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from deployments.engine.model_source import ModelInfo, ModelLoadError, load_model_info
from serve.capacity.config_problems import check_drain
from serve.config.app import AppConfig
from serve.config.catalog import effective_defaults
from serve.config.catalog_files import entry_files, name_clashes, read_entry
from serve.config.old_keys import OLD_KEYS
from serve.config.schema import ConfigError, unknown_keys
from serve.config.sentences import sentences

IMPORT_PATH = "serve.app:build_app"


def check(path: Path) -> list[AppConfig]:
    """The file's Midstep applications. Raises ConfigError if the file cannot be served, with a line for each
    problem."""
    try:
        data: Any = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: is not a mapping")
    problems = [*unknown_keys(ServeDeploySchema, data), *_problems_for_serve(data)]
    applications = data.get("applications")
    all_args = [
        (f"applications[{index}].args", application.get("args") or {})
        for index, application in enumerate(applications if isinstance(applications, list) else [])
        if isinstance(application, dict) and application.get("import_path") == IMPORT_PATH
    ]
    for place, args in all_args:
        problems += _problems_of_args(args, place)
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return [AppConfig.model_validate(args) for _, args in all_args]


def only_application(path: Path) -> AppConfig:
    """The file's only Midstep application. Raises ConfigError."""
    configs = check(path)
    if len(configs) != 1:
        raise ConfigError(
            f"{path}: {len(configs)} applications of {IMPORT_PATH} are in the file; one is needed"
        )
    return configs[0]


def checked_model_info(config: AppConfig) -> ModelInfo:
    """The model's information for the HTTP side, after checks of its parts and of the configuration.

    Reads no weights. Raises ConfigError and ModelLoadError.
    """
    is_simulated = config.model.device == "simulated"
    info = load_model_info(config.model.source(), with_weights=not is_simulated)
    if config.model.quantization != "none" and not is_simulated and find_spec("torchao") is None:
        raise ConfigError(
            f"model.quantization: {config.model.quantization} needs torchao, which is not installed: "
            f"{sys.executable} -m pip install --constraint constraints.txt --editable '.[quantization]'"
        )
    config.check_for(info)
    check_drain(config, info)
    return info


def check_catalog(config: AppConfig) -> int:
    """The number of models in the catalog. Reads nothing of the models themselves.

    Raises ConfigError if its folder is not there, or if files of it cannot be used, with a line for each
    problem.

    A server starts without such files, because one of them must not keep the others from being served.
    """
    catalog = config.catalog.resolved(config.jobs.data_folder)
    if catalog.folder is None:
        return 0
    problems, entries = [], {}
    try:
        files = entry_files(Path(catalog.folder))
    except OSError as error:
        raise ConfigError(f"catalog.folder: {catalog.folder} cannot be read: {error.strerror}") from error
    for file in files:
        try:
            entries[file] = read_entry(file)
            effective_defaults(config.defaults, entries[file].defaults)
        except ConfigError as error:
            problems += [f"{file}: {line}" for line in str(error).splitlines()]
    for file, clash in name_clashes(config.model, entries).items():
        problems += [f"{file}: {line}" for line in clash.splitlines()]
    if problems:
        raise ConfigError("\n".join(problems))
    return len(entries)


def check_adapters(config: AppConfig) -> None:
    """Raises ConfigError if the folder of adapters cannot be read."""
    folder = config.adapters.resolved(config.jobs.data_folder).folder
    if folder is not None:
        try:
            next(Path(folder).iterdir(), None)
        except OSError as error:
            raise ConfigError(f"adapters.folder: {folder} cannot be read: {error.strerror}") from error


def _problems_of_args(args: Any, place: str) -> list[str]:
    if unknown := list(unknown_keys(AppConfig, args, f"{place}.", OLD_KEYS)):
        return unknown
    try:
        config = AppConfig.model_validate(args)
        if config.model.source().is_folder:
            checked_model_info(config)
        else:  # the hub is asked only when the application is built
            config.model.known_cost()
    except ValidationError as error:
        return sentences(error, args, place)
    except ConfigError as error:
        return [f"{place}.{line}" for line in str(error).splitlines()]
    except ModelLoadError as error:
        return [f"{place}.model.path: {line}" for line in str(error).splitlines()]
    return []


def _problems_for_serve(data: dict[str, Any]) -> list[str]:
    """Problems that Ray Serve itself would refuse, and impossible ports, which it would accept."""
    problems = []
    try:
        ServeDeploySchema.model_validate(data)
    except ValidationError as error:
        problems += sentences(error, data)
    for options in ("http_options", "grpc_options"):
        port = data[options].get("port") if isinstance(data.get(options), dict) else None
        if isinstance(port, int) and not 0 <= port < 2**16:
            problems.append(f"{options}.port: {port} is not a port; ports go from 0 to {2**16 - 1}")
    return problems
