"""The adapters' folder: which files are in it now. It reads none of them."""

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path

from deployments.tensor_files.headers import PICKLE_SUFFIXES

logger = logging.getLogger("ray.serve")

SUFFIX = ".safetensors"
_LOOK_INTERVAL_S = 2.0
# A folder may change again within its time stamp's precision after it was listed.
_RECENT_NS = 2 * 10**9
_MOST_COMPARED = 200  # ids with a name: each takes a tenth of a millisecond, in which nothing else runs
_LONGEST_COMPARED = 100  # characters
_ALMOST = 0.8  # of difflib's 0 to 1


@dataclass(frozen=True)
class Listing:
    """The files by their ids, which are their paths without the suffix, in order; and the ids by file name.

    folders: the folders that were listed, with their times; is_sure: no file can have come unnoticed
    """

    files: Mapping[str, Path]
    ids: Mapping[str, Sequence[str]]
    folders: Mapping[str, int]
    is_sure: bool

    def named(self, name: str) -> Sequence[str]:
        """The ids that a name can mean: an id, or else a file's name without its folder. It may end in the
        suffix."""
        for one in (name, name.removesuffix(SUFFIX)):
            if found := [one] if one in self.files else self.ids.get(one, []):
                return found
        return []

    def near(self, name: str, cutoff: float = 0.5) -> Sequence[str]:
        """Up to three ids that look like the name. Of many ids, only those of files that begin like it are
        compared. cutoff: of difflib's 0 to 1"""
        ids: Iterable[str] = self.files
        if len(self.files) > _MOST_COMPARED:
            start = name.rpartition("/")[2][:2].lower()
            alike = (found for file, found in self.ids.items() if file[:2].lower() == start)
            ids = islice(chain.from_iterable(alike), _MOST_COMPARED)
        return get_close_matches(name[:_LONGEST_COMPARED], ids, n=3, cutoff=cutoff)

    def is_meant(self, name: str) -> bool:
        """Whether a name such as a/b means a file here, though there may be none: it is an id, or the folder
        `a` is here, or it is almost an id. Else a slip would name a stranger's file on the hub."""
        folder = name.partition("/")[0] + "/"
        if self.named(name) or any(one.startswith(folder) for one in self.files):
            return True
        return bool(self.near(name, _ALMOST))


NOTHING = Listing({}, {}, {}, is_sure=True)


class AdapterFolder:
    """The files of a folder and of the folders in it. It may be used by several threads.

    Left out, with a warning: links that lead out of it, links to folders, pickles. Hidden files are ignored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._listing: Listing | None = None
        self._look_at = 0.0  # on the monotonic clock
        self._told: set[str] = set()

    def listing(self) -> Listing:
        """The files that are there now. It may take a while, for a folder with many."""
        with self._lock:
            if time.monotonic() >= self._look_at:
                self._look()
                self._look_at = time.monotonic() + _LOOK_INTERVAL_S
            return self._listing or NOTHING

    def _look(self) -> None:
        try:
            if self._listing is None or not _is_same(self._listing):
                self._listing, warnings = _listed(self._folder)
                for warning in warnings:
                    self._tell(warning)
        except OSError as error:
            self._tell(
                f"adapters.folder: {self._folder} cannot be read: {error.strerror or error}; what was known "
                "of it stays"
            )

    def _tell(self, warning: str) -> None:
        """Logs a warning once."""
        if warning not in self._told:
            self._told.add(warning)
            logger.warning("%s", warning)


def _is_same(listing: Listing) -> bool:
    """Whether no file has come or gone since. Raises OSError."""
    try:
        return listing.is_sure and all(
            os.stat(folder).st_mtime_ns == changed_ns for folder, changed_ns in listing.folders.items()
        )
    except FileNotFoundError:
        return False


@dataclass
class _Scan:
    """A walk through the folder. root: without links"""

    root: Path
    files: dict[str, Path] = field(default_factory=dict)
    folders: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def walk(self, folder: Path, prefix: str = "") -> None:
        """Raises OSError if the folder cannot be read."""
        self.folders[str(folder)] = folder.stat().st_mtime_ns
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda one: one.name)
        for entry in entries:
            if not entry.name.startswith(".") and self._is_allowed(entry):
                self._take(entry, prefix)

    def _take(self, entry: os.DirEntry[str], prefix: str) -> None:
        path = Path(entry.path)
        if entry.is_dir():
            try:
                self.walk(path, f"{prefix}{entry.name}/")
            except OSError as error:  # no folder stops the others
                self.warnings.append(f"{path} cannot be read: {error.strerror or error}; it is left out")
        elif path.suffix == SUFFIX:
            self.files[f"{prefix}{path.stem}"] = path
        elif path.suffix.lower() in PICKLE_SUFFIXES:
            self.warnings.append(f"{path} is a pickle, which can run any code when it is loaded: left out")

    def _is_allowed(self, entry: os.DirEntry[str]) -> bool:
        if not entry.name.isprintable():
            self.warnings.append(f"{entry.path!r} has a name that cannot be written in a request: left out")
            return False
        if not entry.is_symlink():
            return True
        target = Path(os.path.realpath(entry.path))
        if target.is_relative_to(self.root) and not target.is_dir():
            return True
        self.warnings.append(f"{entry.path} is a link to a folder, or one that leads out of it: left out")
        return False


def _listed(folder: Path) -> tuple[Listing, list[str]]:
    """The files, and what is left out, in sentences. Raises OSError if the folder cannot be read."""
    began_ns = time.time_ns()
    scan = _Scan(Path(os.path.realpath(folder)))
    scan.walk(folder)
    ids: dict[str, list[str]] = {}
    for adapter_id in scan.files:
        ids.setdefault(adapter_id.rpartition("/")[2], []).append(adapter_id)
    is_sure = all(abs(began_ns - changed_ns) > _RECENT_NS for changed_ns in scan.folders.values())
    files = dict(sorted(scan.files.items()))
    return Listing(files, ids, scan.folders, is_sure), scan.warnings
