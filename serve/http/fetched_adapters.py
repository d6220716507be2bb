"""The folder of fetched adapters: files by their SHA-256, and which place each came from."""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from serve.errors import StorageFullError
from serve.jobs.durable_files import write_whole
from serve.private_files import make_missing_folders, open_private
from serve.wanted import FetchedAdapter

_FRESH_S = 24 * 3600.0  # what is at a URL may change
_PUT_OFF_S = 600.0  # after it could not be fetched again
_KEPT_S = 24 * 3600.0  # jobs may wait for a file
_PLACE_KEPT_S = 30 * 24 * 3600.0  # that was not fetched again
_PART_KEPT_S = 3600.0  # of processes that died


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

    def open(self) -> None:
        """Makes the file. Raises OSError."""
        make_missing_folders(self.path.parent)
        self._file = open(self.path, "xb", opener=open_private)  # noqa: SIM115

    def close(self) -> None:
        """Raises OSError."""
        self._file.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept file. is_fresh: whether it need not be looked for again"""

    file: FetchedAdapter
    is_fresh: bool


class FetchedAdapters:
    """The folder, which several processes may use.

    max_bytes: past which files that were not used for a day are deleted
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

    def put_off(self, place: str) -> None:
        """The kept file of a place counts as fresh for ten minutes."""
        until = time.time() - _FRESH_S + _PUT_OFF_S
        with suppress(OSError):
            os.utime(self.folder / _entry_of(place), (until, until))

    def keep(self, place: str, name: str, download: Download) -> FetchedAdapter:
        """The downloaded file as the one that came from a place. Raises OSError and StorageFullError."""
        path = self.folder / f"{download.digest}.safetensors"
        if not path.exists():
            self.make_room(download.num_bytes)
        download.path.replace(path)
        entry = {"name": name, "digest": download.digest}
        write_whole(self.folder, _entry_of(place), json.dumps(entry).encode(), is_durable=False)
        return FetchedAdapter(name, path, download.digest)

    def make_room(self, num_bytes: int) -> None:
        """Deletes the files that were used longest ago, until one of so many bytes has room.

        Raises StorageFullError if too many files were used within a day.
        """
        self.sweep()
        files = _aged(self.folder.glob("*.safetensors"))
        excess = sum(one.num_bytes for one in files) + num_bytes - self._max_bytes
        for one in sorted(files, key=lambda one: -one.age_s):
            if excess <= 0 or one.age_s < _KEPT_S:
                break
            one.path.unlink(missing_ok=True)
            excess -= one.num_bytes
        if excess > 0:
            raise StorageFullError(
                "The server's folder of fetched adapters is full of files that were used within a day "
                "(adapters.cache_gib)."
            )

    def sweep(self) -> None:
        """Deletes what processes that died have left, and places that nobody names any more."""
        places = self.folder / "places"
        parts = _aged((*self.folder.glob(".*"), *places.glob(".*")))
        left = [one for one in parts if one.age_s > _PART_KEPT_S]
        left += [one for one in _aged(places.glob("*.json")) if one.age_s > _PLACE_KEPT_S]
        for one in left:
            one.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Aged:
    """A file. age_s: seconds since it was written or used"""

    path: Path
    num_bytes: int
    age_s: float


def _aged(paths: Iterable[Path]) -> list[_Aged]:
    """Without those that another process has deleted meanwhile."""
    now, found = time.time(), []
    for path in paths:
        with suppress(FileNotFoundError):
            stat = path.stat()
            found.append(_Aged(path, stat.st_size, now - stat.st_mtime))
    return found


def _entry_of(place: str) -> str:
    """The name of the file that says what came from a place. A place may be secret."""
    return f"places/{hashlib.sha256(place.encode()).hexdigest()}.json"
