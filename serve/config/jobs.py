"""The section `jobs` of the configuration."""

import os
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from serve.config.schema import ConfigError, Section, expanded
from serve.http.replicate.prediction import describe
from serve.jobs.objects import ObjectStore
from serve.jobs.store import JobStore
from serve.jobs.webhooks import check_secret, new_secret
from serve.private_files import make_private_folder, make_private_if_there

_FROM_ENVIRONMENT = "env:"


class JobsConfig(Section):
    """Durable jobs: where they are kept and how they are run."""

    data_folder: str = Field(
        "data", description="keeps the job database, images and the webhook secret, where no others are named"
    )
    database_url: str | None = Field(
        None, description="`postgresql://...`, or `env:NAME` for a variable that has it; else SQLite"
    )
    object_store_url: str | None = Field(
        None, description="`s3://bucket/prefix`, `gs://`, `az://`, or `env:NAME`; else the data folder"
    )
    object_store_options: dict[str, str] = Field(
        default_factory=dict, description="for the object store: `endpoint`, `region`, ..."
    )
    presigned_urls: bool = Field(
        False, description="images are fetched from the object store, not through us"
    )
    public_url: str | None = Field(
        None, description="what clients reach this server by; else what each request was sent to"
    )
    webhook_secrets: tuple[str, ...] = Field(
        (), description="`whsec_...` or `env:NAME`, the newest first; else one is made and kept"
    )
    allow_private_webhooks: bool = Field(
        False, description="send webhooks to private addresses as well: for development"
    )
    max_running_images: PositiveInt | Literal["auto"] = Field(
        "auto", description="under way at once per runner; `auto`: a little more than the denoisers hold"
    )
    max_attempts: PositiveInt = Field(
        3, description="how often a job may fail in a row, or its runner die, without it coming further"
    )
    lease_s: PositiveFloat = Field(15.0, description="seconds until a silent runner is taken for dead")
    poll_interval_s: PositiveFloat = Field(
        0.5, description="seconds between looks for new jobs; a look takes milliseconds of a CPU"
    )
    retention_s: PositiveFloat = Field(
        7 * 24 * 3600.0, description="seconds that what is finished is kept, images and prompts"
    )
    forget_after_s: PositiveFloat = Field(
        30 * 24 * 3600.0, description="seconds until it is no longer known that there was such a job"
    )
    num_runners: PositiveInt = Field(1, description="replicas of the runner")
    num_cpus: NonNegativeFloat = Field(0.25, description="CPUs that Ray reserves for a runner")
    resources: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="what Ray reserves for a runner besides, of what its nodes say they have",
    )

    @model_validator(mode="after")
    def _check_retention(self) -> "JobsConfig":
        if self.forget_after_s < self.retention_s:
            raise ValueError(
                f"forget_after_s ({self.forget_after_s:g}) is less than retention_s ({self.retention_s:g})"
            )
        return self

    def job_store(self) -> JobStore:
        """Of a resolved configuration, not open. Raises ConfigError."""
        try:
            return JobStore(str(self.database_url), describe, self.max_attempts)
        except ValueError as error:
            raise ConfigError(f"jobs.database_url: {error}") from error

    def object_store(self) -> ObjectStore:
        """Of a resolved configuration. Raises ConfigError."""
        try:
            return ObjectStore(str(self.object_store_url), self.object_store_options)
        except ValueError as error:
            raise ConfigError(f"jobs.object_store_url: {error}") from error

    def runner_options(self) -> dict[str, Any]:
        """For `Deployment.options`."""
        reserved = {"num_cpus": self.num_cpus, "resources": dict(self.resources)}
        return {"ray_actor_options": reserved, "num_replicas": self.num_runners}

    def resolved(self) -> "JobsConfig":
        """With everything named that the deployments need. Raises ConfigError, naming the key.

        The only place that reads the environment, and that writes a secret.
        """
        folder = expanded("jobs.data_folder", self.data_folder).absolute()
        database = folder / "jobs.sqlite"
        if self.database_url is None or self.object_store_url is None or not self.webhook_secrets:
            try:
                make_private_folder(folder)
            except OSError as error:
                raise ConfigError(f"jobs.data_folder: {folder} cannot be made: {error.strerror}") from error
        secrets = tuple(_value("webhook_secrets", secret) for secret in self.webhook_secrets)
        try:
            secrets = secrets or (_kept_secret(folder / "webhook_secret"),)
        except OSError as error:
            raise ConfigError(
                f"jobs.data_folder: no secret can be kept in {folder}: {error.strerror}"
            ) from error
        for secret in secrets:
            try:
                check_secret(secret)
            except ValueError as error:
                raise ConfigError(f"jobs.webhook_secrets: {error}") from error
        return self.model_copy(
            update={
                "data_folder": str(folder),
                "database_url": f"sqlite:///{database}"
                if self.database_url is None
                else _value("database_url", self.database_url),
                "object_store_url": _value(
                    "object_store_url", self.object_store_url or str(folder / "objects")
                ),
                "webhook_secrets": secrets,
            }
        )


def _value(key: str, given: str) -> str:
    if not given.startswith(_FROM_ENVIRONMENT):
        return given
    name = given.removeprefix(_FROM_ENVIRONMENT)
    if not os.environ.get(name):
        raise ConfigError(f"jobs.{key}: the environment has no variable {name!r}")
    return os.environ[name]


def _kept_secret(path: Path) -> str:
    """The secret of this data folder, made when it is first asked for: whole or not at all."""
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
