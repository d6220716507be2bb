"""The section `jobs`: its values from the environment, and its errors for missing ones."""

import asyncio
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from serve.config.jobs import JobsConfig
from serve.config.schema import ConfigError
from serve.jobs.resources import object_store, resolve
from serve.jobs.webhooks import check_secret, new_secret


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
    jobs = resolve(from_environment(tmp_path / "none"))
    assert jobs.database_url == "postgresql://user:password@host/midstep"
    assert jobs.object_store_url == "s3://bucket/prefix"
    assert jobs.webhook_secrets == (secret,)
    assert not (tmp_path / "none").exists()  # nothing is stored here


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
        resolve(jobs)


def test_the_credentials_of_a_bucket_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-north-9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY-FROM-ENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    jobs = resolve(JobsConfig(data_folder=str(tmp_path), object_store_url="s3://bucket/prefix"))
    url = asyncio.run(object_store(jobs).presigned_url("images/a", 60))
    assert url is not None
    assert "KEY-FROM-ENVIRONMENT" in url
    assert "eu-north-9" in url


def kept_secret(folder: Path) -> str:
    [secret] = resolve(JobsConfig(data_folder=str(folder))).webhook_secrets
    check_secret(secret)
    return secret


def test_the_secret_that_is_made_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    secret = kept_secret(tmp_path)
    assert kept_secret(tmp_path) == secret
    [file] = tmp_path.iterdir()
    assert (file.name, file.read_text(), file.stat().st_mode & 0o777) == ("webhook_secret", secret, 0o600)


def test_a_secret_that_was_being_made_in_a_crash_is_nobodys(tmp_path: Path) -> None:
    part = new_secret()[:20]
    (tmp_path / ".webhook_secret.0123456789abcdef").write_text(part)
    secret = kept_secret(tmp_path)
    assert not secret.startswith(part)
    assert kept_secret(tmp_path) == secret


@contextmanager
def no_room() -> Iterator[None]:
    """Makes every write to a file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_where_there_is_no_room_for_a_secret_a_later_start_makes_it(tmp_path: Path) -> None:
    with no_room(), pytest.raises(ConfigError, match=r"jobs.data_folder: no secret can be kept in"):
        kept_secret(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert kept_secret(tmp_path) == kept_secret(tmp_path)


def test_all_that_start_at_once_have_one_secret(tmp_path: Path) -> None:
    num_starts = 8
    together = Barrier(num_starts)

    def start(folder: Path) -> str:
        together.wait()
        return kept_secret(folder)

    with ThreadPoolExecutor(num_starts) as threads:
        for number in range(30):
            secrets = set(threads.map(start, [tmp_path / str(number)] * num_starts))
            assert len(secrets) == 1
            assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["webhook_secret"]
