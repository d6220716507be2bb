"""What is in adapters' files. Each is read when it is needed first, and again when it has changed."""

import threading
from dataclasses import dataclass
from pathlib import Path

from deployments.adapters.files import AdapterFile, AdapterFileError, digest_of, read_adapter_file
from deployments.adapters.targets import ModelTargets
from deployments.recent import Recent

_MOST_KEPT = 10_000
_Version = tuple[str, int, int, int]  # of a file: its path, size, time and inode


@dataclass(frozen=True, slots=True)
class _Problem:
    sentence: str


class AdapterFiles:
    """Reads headers and digests, and keeps both. It may be used by several threads. max_bytes: of a file"""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._headers: Recent[tuple[_Version, str], AdapterFile | _Problem] = Recent(_MOST_KEPT)
        self._digests: Recent[_Version, str] = Recent(_MOST_KEPT)

    def header(self, path: Path, targets: ModelTargets) -> AdapterFile:
        """What is in a file, for a model. Raises AdapterFileError, which says no folder."""
        version = _version(path)
        with self._lock:
            known = self._headers.use((version, targets.key))
        if known is None:
            known = _read(path, targets, self._max_bytes)
            with self._lock:
                self._headers.keep((version, targets.key), known)
        if isinstance(known, _Problem):
            raise AdapterFileError(known.sentence)
        return known

    def digest(self, path: Path) -> str:
        """The file's SHA-256. It takes a second per GB at the first use. Raises AdapterFileError."""
        version = _version(path)
        with self._lock:
            known = self._digests.use(version)
        if known is None:
            known = digest_of(path)
            with self._lock:
                self._digests.keep(version, known)
        return known


def _version(path: Path) -> _Version:
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
