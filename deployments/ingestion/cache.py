"""The cache's folders: parts and models under the digests of their content, and an index of what is known.

    parts/<digest>/   one part, as diffusers or transformers writes it; equal parts of several models are one
    models/<digest>/  model_index.json, scheduler/, manifest.json and links to its parts
    index/<key>.json  the digest of the model that an entry with these source files became
    staging/<key>/    what is being written; locks/<key>: held by the process that writes it

What has a final name is complete: it is written in staging and then renamed. Nothing here needs torch.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.engine.fingerprint import MANIFEST
from deployments.tensor_files.errors import TensorFileError
from deployments.tensor_files.headers import read_header

# A model that was used within this time is not deleted: it may be served by another replica, or be wanted by
# a job that was accepted before its file left the catalog. Servers mark what they serve as used all the time.
GRACE_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Staging:
    """A folder for what is being written."""

    folder: Path

    @property
    def parts(self) -> Path:
        return self.folder / "parts"

    def new_part(self, name: str) -> Path:
        folder = self.parts / name
        folder.mkdir(parents=True)
        return folder

    def take_existing(self, name: str, existing: Path) -> bool:
        """Whether the part is in the cache already.

        Its files are linked here, in case it is deleted before this model has its final name.
        """
        folder = self.new_part(name)
        try:
            for path in existing.iterdir():
                if path.suffix == ".safetensors":
                    read_header(path)  # not one that was cut off
                os.link(path, folder / path.name)
            if {path.suffix for path in folder.iterdir()} >= {".json", ".safetensors"}:
                return True
        except (OSError, TensorFileError):  # not there, damaged, or a file system without links
            pass
        shutil.rmtree(folder)
        return False


class Cache:
    """The folder in which ingested models are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def part_folder(self, digest: str) -> Path:
        return self.folder / "parts" / digest

    def model_folder(self, digest: str) -> Path:
        return self.folder / "models" / digest

    def find(self, key: str) -> Path | None:
        """The complete model under the key. It counts as used now."""
        try:
            digest = json.loads((self.folder / "index" / f"{key}.json").read_bytes())["digest"]
            folder = self.model_folder(digest)
            if not _is_complete(folder):
                return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        self.touch(folder)
        return folder

    def touch(self, folder: Path) -> bool:
        """Counts a model as used now. Returns whether it is there."""
        with suppress(OSError):  # a cache that only others write
            os.utime(folder)
        return folder.is_dir()

    @contextmanager
    def locked(self, key: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Holds the key among all processes. The system releases it when a process dies."""
        path = self.folder / "locks" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def staging(self, key: str) -> Iterator[Staging]:
        """An empty folder for the holder of the key, who died perhaps the last time."""
        folder = self.folder / "staging" / key
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield Staging(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(
        self,
        key: str,
        staging: Staging,
        manifest: Mapping[str, Any],
        index: Mapping[str, Any],
        scheduler: Mapping[str, Any],
    ) -> Path:
        """Gives what is written its final names, and returns the model's folder."""
        files = {
            part.name: {path.name: path.stat().st_size for path in sorted(part.iterdir())}
            for part in staging.parts.iterdir()
        }
        model = staging.folder / "model"
        write_json(model / "model_index.json", index)
        write_json(model / "scheduler" / "scheduler_config.json", scheduler)
        write_json(model / MANIFEST, {**manifest, "files": files})
        for part in files:
            (model / part).symlink_to(Path("..", "..", "parts", manifest["digests"][part]))
        _sync(staging.folder)
        with self.locked("cache"):
            for part, sizes in files.items():
                _rename(staging.parts / part, self.part_folder(manifest["digests"][part]), sizes)
            folder = self.model_folder(manifest["digest"])
            if folder.exists() and not _is_complete(folder):
                shutil.rmtree(folder)
            if not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                model.rename(folder)
        os.utime(folder)
        entry = staging.folder / "entry.json"
        write_json(entry, {"digest": manifest["digest"]})
        (self.folder / "index").mkdir(exist_ok=True)
        entry.rename(self.folder / "index" / f"{key}.json")
        return folder

    def shrink(self, limit_bytes: int, keep: Collection[Path]) -> list[Path]:
        """Deletes the least recently used models until the rest fits, and returns their folders.

        keep: folders of models that stay in any case. Those that were used within `GRACE_S` stay too, so the
        limit may not be met. Parts that no model has are deleted.
        """
        kept = {path.resolve() for path in keep}
        deleted: list[Path] = []
        with self.locked("cache"):
            self._delete_leftovers()
            self._delete_unreferenced()
            for folder in self._unused():
                if self.num_bytes() <= limit_bytes:
                    break
                if folder.resolve() not in kept:
                    self._delete(folder)
                    self._delete_unreferenced()
                    deleted.append(folder)
            self._delete_entries_without_model()
        return deleted

    def num_bytes(self) -> int:
        """The size of all parts."""
        total = 0
        for path in (self.folder / "parts").rglob("*"):
            with suppress(FileNotFoundError):  # another process deletes it just now
                total += path.stat().st_size if path.is_file() else 0
        return total

    def _unused(self) -> list[Path]:
        """The models that may be deleted, the least recently used one first."""
        used_at = {path: path.stat().st_mtime for path in _folders(self.folder / "models")}
        before = time.time() - GRACE_S
        return sorted((path for path in used_at if used_at[path] < before), key=lambda path: used_at[path])

    def _delete(self, folder: Path) -> None:
        """Takes the name first, so that death does not leave half of it."""
        trash = self.folder / "staging" / f"deleted-{folder.name}"
        trash.parent.mkdir(exist_ok=True)
        shutil.rmtree(trash, ignore_errors=True)
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def _delete_leftovers(self) -> None:
        """Deletes what dead processes were writing: the system has released their locks."""
        for folder in _folders(self.folder / "staging"):
            with suppress(BlockingIOError), self.locked(folder.name, on_wait=_do_not_wait):
                shutil.rmtree(folder, ignore_errors=True)

    def _delete_unreferenced(self) -> None:
        used = {
            link.readlink().name
            for model in _folders(self.folder / "models")
            for link in model.iterdir()
            if link.is_symlink()
        }
        for folder in _folders(self.folder / "parts"):
            if folder.name not in used:
                self._delete(folder)

    def _delete_entries_without_model(self) -> None:
        for path in (self.folder / "index").glob("*.json"):
            try:
                is_known = self.model_folder(json.loads(path.read_bytes())["digest"]).is_dir()
            except OSError:
                continue
            except (ValueError, KeyError, TypeError, RecursionError):  # damaged
                is_known = False
            if not is_known:
                path.unlink(missing_ok=True)


def _do_not_wait() -> None:
    """Leaves a lock to the process that holds it."""
    raise BlockingIOError


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a model in the cache."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    return manifest


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []


def _is_complete(folder: Path) -> bool:
    """Whether all of the files are there that the manifest lists, with their sizes."""
    try:
        files = read_manifest(folder)["files"]
        return all(_has_files(folder / part, sizes) for part, sizes in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _has_files(folder: Path, sizes: Mapping[str, int]) -> bool:
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items()
    )


def _rename(part: Path, target: Path, sizes: Mapping[str, int]) -> None:
    """Leaves an equal part where it is, and replaces a damaged one."""
    if target.exists() and not _has_files(target, sizes):
        shutil.rmtree(target)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part.rename(target)


def _sync(folder: Path) -> None:
    """Brings files to the disk, so that after a power failure no final name has unfinished content."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
