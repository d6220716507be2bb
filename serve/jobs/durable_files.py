"""Whole files, which may survive a loss of power: the object store's writes to a local folder."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from serve.errors import ObjectStoreUnavailableError, StorageFullError
from serve.private_files import make_missing_folders, open_private

logger = logging.getLogger("ray.serve")


def write_whole(root: Path, key: str, data: bytes, is_durable: bool) -> None:
    """Writes a whole file or nothing.

    is_durable: when this returns, the file, its name and its folders are on disk
    """
    target = root / key
    part = target.with_name(f".{target.name}.{token_hex(8)}")
    make_missing_folders(target.parent)
    try:
        with open(part, "xb", opener=open_private) as file:
            file.write(data)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if not is_durable:
        return
    # The folders above too: another thread may have made them a moment ago, and they may not be on disk yet.
    for folder in target.parents:
        _synchronise(folder)
        if folder == root:
            break


def _synchronise(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns the operating system's errors into StorageFullError and ObjectStoreUnavailableError."""
    try:
        yield
    except OSError as error:
        logger.warning("object store: %s", error)
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise StorageFullError(f"The object store has no room left: {error.strerror}.") from error
        raise ObjectStoreUnavailableError(f"The object store cannot be used: {error.strerror}.") from error
