"""Reads the files of the catalog's folder, none of which stops the others."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from serve.config.catalog import CatalogEntry
from serve.config.catalog_files import entry_files, read_entry
from serve.config.schema import ConfigError

logger = logging.getLogger("ray.serve")

Stamp = tuple[int, int, int]  # changes with a file: its time, size and inode


def stamps_of(folder: Path) -> dict[Path, Stamp]:
    """The folder's files. Raises OSError if the folder itself cannot be read."""
    stamps = {}
    for path in entry_files(folder):
        with suppress(FileNotFoundError):  # it has just gone
            stamps[path] = _stamp(path)
    folder.stat()  # if it has gone meanwhile, its files have not been removed one by one
    return stamps


def _stamp(path: Path) -> Stamp:
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise
    except OSError:  # to read it tells why
        return 0, 0, 0
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def read_entries(paths: Iterable[Path]) -> dict[Path, tuple[CatalogEntry | None, str | None]]:
    """What the files say, or what is wrong with them."""
    read: dict[Path, tuple[CatalogEntry | None, str | None]] = {}
    for path in paths:
        try:
            read[path] = read_entry(path), None
        except ConfigError as error:
            read[path] = None, str(error)
        except Exception as error:  # no file stops the others
            logger.exception("%s could not be read", path)
            read[path] = None, f"cannot be understood: {error!r}; the server's log has more"
    return read
