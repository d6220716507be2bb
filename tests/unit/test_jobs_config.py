"""The section `jobs`: what it takes from the environment, and how it says that something is missing there."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serve.jobs.config import JobsConfig
from serve.jobs.webhooks import new_secret
from serve.section import ConfigError


def from_environment(folder: Path) -> JobsConfig:
    return JobsConfig(
        data_folder=str(folder),
        database_url="env:DATABASE_URL",
        object_store_url="env:OBJECT_STORE_URL",
        webhook_secrets=("env:WEBHOOK_SECRET",),
    )


def test_addresses_and_secrets_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = new_secret()
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:password@host/midstep")
    monkeypatch.setenv("OBJECT_STORE_URL", "s3://bucket/prefix")
    monkeypatch.setenv("WEBHOOK_SECRET", secret)
    jobs = from_environment(tmp_path / "none").resolved()
    assert jobs.database_url == "postgresql://user:password@host/midstep"
    assert jobs.object_store_url == "s3://bucket/prefix"
    assert jobs.webhook_secrets == (secret,)
    assert not (tmp_path / "none").exists()  # nothing is kept here


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("database_url", "env:NOT_THERE"),
        ("object_store_url", "env:NOT_THERE"),
        ("webhook_secrets", ("env:NOT_THERE",)),
    ],
)
def test_a_variable_that_is_missing_is_named_with_its_key(tmp_path: Path, key: str, value: Any) -> None:
    jobs = JobsConfig.model_validate({"data_folder": str(tmp_path), key: value})
    with pytest.raises(ConfigError, match=f"jobs.{key}: the environment has no variable 'NOT_THERE'"):
        jobs.resolved()


def test_the_credentials_of_a_bucket_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-north-9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY-FROM-ENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    jobs = JobsConfig(data_folder=str(tmp_path), object_store_url="s3://bucket/prefix").resolved()
    url = asyncio.run(jobs.object_store().presigned_url("images/a", 60))
    assert url is not None
    assert "KEY-FROM-ENVIRONMENT" in url
    assert "eu-north-9" in url
