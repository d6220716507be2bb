"""The folder of fetched adapters: files by their SHA-256, and which place each came from."""

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Self

from serve.jobs.durable_files import write_whole
from serve.private_files import make_missing_folders, open_private
from serve.wanted import FetchedAdapter

# What is at a URL may change.
_FRESH_S = 24 * 3600.0
# Jobs may wait for a file.
_KEPT_S = 24 * 3600.0


class Download:
    """A file while it comes. It is deleted in the end, unless it was given a name.

    path: of the file; num_bytes, digest: of what has come
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f".{token_hex(8)}"
        self.num_bytes = 0
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Raises OSError."""
        self._file.write(chunk)
        self._file.flush()
        self._digest.update(chunk)
        self.num_bytes += len(chunk)

    def __enter__(self) -> Self:
        make_missing_folders(self.path.parent)
        self._file = open(self.path, "xb", opener=open_private)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept file. is_fresh: whether it need not be looked for again"""

    file: FetchedAdapter
    is_fresh: bool


class FetchedAdapters:
    """The folder, which several processes may use.

    max_bytes: past which files that were not used for long are deleted
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    def find(self, place: str) -> Kept | None:
        """The file that came from a place. It counts as used now."""
        entry = self.folder / _entry_of(place)
        try:
            found = json.loads(entry.read_bytes())
            path = self.folder / f"{found['digest']}.safetensors"
            os.utime(path)
            is_fresh = time.time() - entry.stat().st_mtime < _FRESH_S
            return Kept(FetchedAdapter(found["name"], path, found["digest"]), is_fresh)
        except (OSError, ValueError, KeyError, TypeError):  # not there, or not whole: it is fetched
            return None

    def keep(self, place: str, name: str, download: Download) -> FetchedAdapter:
        """The downloaded file as the one that came from a place. Raises OSError."""
        path = self.folder / f"{download.digest}.safetensors"
        download.path.replace(path)
        entry = {"name": name, "digest": download.digest}
        write_whole(self.folder, _entry_of(place), json.dumps(entry).encode(), is_durable=False)
        self._shrink()
        return FetchedAdapter(name, path, download.digest)

    def _shrink(self) -> None:
        """Deletes the files that were used longest ago, until the rest is small enough."""
        files = [(path.stat(), path) for path in self.folder.glob("*.safetensors")]
        num_bytes = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda one: one[0].st_mtime):
            if num_bytes <= self._max_bytes or time.time() - stat.st_mtime < _KEPT_S:
                return
            path.unlink(missing_ok=True)
            num_bytes -= stat.st_size


def _entry_of(place: str) -> str:
    """The name of the file that says what came from a place. A place may be secret."""
    return f"places/{hashlib.sha256(place.encode()).hexdigest()}.json"
