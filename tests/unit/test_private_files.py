"""Files of jobs are for the server's own user only: prompts, pictures, secrets, whatever the umask."""

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.config.jobs import JobsConfig
from serve.jobs.objects import ObjectStore
from serve.jobs.resources import job_store, object_store, resolve
from serve.private_files import make_private_folder
from tests.job_stores import MODEL, describe


@pytest.fixture(autouse=True, params=[0o000, 0o022], ids=["open umask", "usual umask"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder.parent)): f"{path.stat().st_mode & 0o777:o}"
        for path in [folder, *folder.rglob("*")]
    }


def keep_something(folder: Path) -> dict[str, str]:
    """The modes of all files in a data folder while its stores are open."""

    async def main() -> dict[str, str]:
        jobs = resolve(JobsConfig(data_folder=str(folder)))
        store = job_store(jobs, [MODEL], describe)
        await store.open()
        await object_store(jobs).put("images/job/0-x.png", b"picture")
        try:
            return modes(folder)
        finally:
            await store.close()

    return asyncio.run(main())


KEPT = {
    "data": "700",
    "data/jobs.sqlite": "600",
    "data/jobs.sqlite-shm": "600",
    "data/jobs.sqlite-wal": "600",
    "data/objects": "700",
    "data/objects/images": "700",
    "data/objects/images/job": "700",
    "data/objects/images/job/0-x.png": "600",
    "data/webhook_secret": "600",
}


def test_what_is_kept_of_jobs_is_for_its_owner_alone(tmp_path: Path) -> None:
    seen = keep_something(tmp_path / "data")
    assert {path: mode for path, mode in seen.items() if path in KEPT} == KEPT
    assert not [path for path, mode in seen.items() if path not in KEPT and not mode.endswith("00")]


def test_what_was_open_to_others_is_taken_from_them_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    keep_something(folder)
    were_open = [folder, folder / "objects", folder / "jobs.sqlite", folder / "webhook_secret"]
    for path in were_open:
        path.chmod(0o755 if path.is_dir() else 0o644)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        seen = keep_something(folder)
    assert {path: seen[path] for path in KEPT} == KEPT
    told = [record.message for record in caplog.records if "was open to other users" in record.message]
    assert sorted(message.split()[0] for message in told) == sorted(map(str, were_open))
    assert keep_something(folder) == seen


def test_folders_that_are_for_more_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, mode in (("public", 0o1777), ("home", 0o755), ("project", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
        (tmp_path / name / "inside").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "inside"))
    monkeypatch.chdir(tmp_path / "project")
    with caplog.at_level(logging.WARNING, "ray.serve"):
        for name in ("public", "home", "project"):
            make_private_folder(tmp_path / name)
    assert [f"{(tmp_path / name).stat().st_mode & 0o7777:o}" for name in ("public", "home", "project")] == [
        "1777",
        "755",
        "755",
    ]
    assert len([one for one in caplog.records if "is not for jobs alone" in one.message]) == 3


def test_an_object_store_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/objects cannot be created: Not a directory"):
        ObjectStore(str(tmp_path / "file" / "objects"))
