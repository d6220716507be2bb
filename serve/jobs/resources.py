"""Makes the things that the section `jobs` names: environment values, two stores, and the kept secret."""

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from serve.config.jobs import JobsConfig
from serve.config.schema import ConfigError, expanded
from serve.jobs.job import Job
from serve.jobs.objects import ObjectStore
from serve.jobs.store import JobStore
from serve.jobs.webhooks import check_secret, new_secret
from serve.private_files import make_private_folder, make_private_if_there

_FROM_ENVIRONMENT = "env:"


def resolve(config: JobsConfig) -> JobsConfig:
    """The section with every value filled in that the deployments need. Raises ConfigError, naming the key.

    Only this function reads the environment and writes a secret.
    """
    folder = expanded("jobs.data_folder", config.data_folder).absolute()
    database = folder / "jobs.sqlite"
    if config.database_url is None or config.object_store_url is None or not config.webhook_secrets:
        try:
            make_private_folder(folder)
        except OSError as error:
            raise ConfigError(f"jobs.data_folder: {folder} cannot be created: {error.strerror}") from error
    return config.model_copy(
        update={
            "data_folder": str(folder),
            "database_url": f"sqlite:///{database}"
            if config.database_url is None
            else _value("database_url", config.database_url),
            "object_store_url": _value(
                "object_store_url", config.object_store_url or str(folder / "objects")
            ),
            "webhook_secrets": _webhook_secrets(config, folder),
        }
    )


def job_store(
    config: JobsConfig, models: Collection[str], describe: Callable[[Job], Mapping[str, Any]]
) -> JobStore:
    """The job store of a resolved configuration, not open. Raises ConfigError.

    models: names of the served models; describe: a job as webhooks get it
    """
    try:
        return JobStore(str(config.database_url), describe, models)
    except ValueError as error:
        raise ConfigError(f"jobs.database_url: {error}") from error


def object_store(config: JobsConfig) -> ObjectStore:
    """The object store of a resolved configuration. Raises ConfigError."""
    try:
        return ObjectStore(str(config.object_store_url), config.object_store_options)
    except ValueError as error:
        raise ConfigError(f"jobs.object_store_url: {error}") from error


def _webhook_secrets(config: JobsConfig, folder: Path) -> tuple[str, ...]:
    secrets = tuple(_value("webhook_secrets", secret) for secret in config.webhook_secrets)
    try:
        secrets = secrets or (_kept_secret(folder / "webhook_secret"),)
    except OSError as error:
        raise ConfigError(f"jobs.data_folder: no secret can be kept in {folder}: {error.strerror}") from error
    for secret in secrets:
        try:
            check_secret(secret)
        except ValueError as error:
            raise ConfigError(f"jobs.webhook_secrets: {error}") from error
    return secrets


def _value(key: str, given: str) -> str:
    if not given.startswith(_FROM_ENVIRONMENT):
        return given
    name = given.removeprefix(_FROM_ENVIRONMENT)
    if not os.environ.get(name):
        raise ConfigError(f"jobs.{key}: the environment has no variable {name!r}")
    return os.environ[name]


def _kept_secret(path: Path) -> str:
    """The secret of this data folder. The first call creates it, as a whole or not at all."""
    make_private_if_there(path)
    if not path.exists():
        part = path.with_name(f".{path.name}.{token_hex(8)}")
        try:
            part.touch(0o600)
            part.write_text(new_secret())
            with suppress(FileExistsError):  # another process was faster
                path.hardlink_to(part)
        finally:
            part.unlink(missing_ok=True)
    return path.read_text().strip()
