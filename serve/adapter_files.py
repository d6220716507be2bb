"""What is in adapters' files. Each is read when it is needed first, and again when it has changed."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from deployments.adapters.files import AdapterFile, AdapterFileError, digest_of, read_adapter_file
from deployments.adapters.targets import ModelTargets
from deployments.recent import Recent

_MOST_KEPT = 10_000
Version = tuple[str, int, int, int]  # of a file: its path, size, time and inode
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Problem:
    sentence: str


class AdapterFiles:
    """Reads headers and digests, and keeps both. It may be used by several threads. max_bytes: of a file"""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._headers: _Kept[AdapterFile | _Problem] = _Kept()
        self._digests: _Kept[str] = _Kept()

    def header(self, path: Path, targets: ModelTargets, version: Version | None = None) -> AdapterFile:
        """What is in a file, for a model. version: as `version_of` has said; None for the present one

        Raises AdapterFileError, which says no folder.
        """
        known = self._headers.read(path, version, targets.key, lambda: _read(path, targets, self._max_bytes))
        if isinstance(known, _Problem):
            raise AdapterFileError(known.sentence)
        return known

    def digest(self, path: Path, version: Version | None = None) -> str:
        """The file's SHA-256. It takes a second per GB at the first use. version: as in `header`

        Raises AdapterFileError.
        """
        return self._digests.read(path, version, "", lambda: digest_of(path))


class _Kept(Generic[Result]):
    """What was read of files, by their versions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Who waits for it mostly wants what the other is reading.
        self._reading = threading.Lock()
        self._known: Recent[tuple[Version, str], Result] = Recent(_MOST_KEPT)

    def read(self, path: Path, version: Version | None, key: str, read: Callable[[], Result]) -> Result:
        """What is known by that key, or is read now. Raises AdapterFileError."""
        version = version or version_of(path)
        if (known := self._use((version, key))) is not None:
            return known
        with self._reading:
            if (known := self._use((version, key))) is not None:
                return known
            known = read()
            if version_of(path) != version:
                raise AdapterFileError(f"{path.name} is being changed: ask for it again")
            with self._lock:
                self._known.keep((version, key), known)
            return known

    def _use(self, key: tuple[Version, str]) -> Result | None:
        with self._lock:
            return self._known.use(key)


def version_of(path: Path) -> Version:
    """Raises AdapterFileError if the file is not there."""
    try:
        stat = path.stat()
    except OSError as error:
        raise AdapterFileError(f"{path.name} cannot be read: {error.strerror}") from error
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino


def _read(path: Path, targets: ModelTargets, max_bytes: int) -> AdapterFile | _Problem:
    try:
        return read_adapter_file(path, targets, max_bytes)
    except AdapterFileError as error:
        return _Problem(str(error))
