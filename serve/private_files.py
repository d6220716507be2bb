"""Files and folders with prompts, pictures and secrets, which no other user of the machine may read."""

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger("ray.serve")

_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
_OTHERS = 0o077


def make_private_folder(folder: Path) -> None:
    """Makes a folder that only its owner can enter, or closes an existing one to other users.

    Folders that are not only for jobs stay unchanged: one with the sticky bit, such as /tmp, and one that
    contains the home folder or the working folder. Raises OSError.
    """
    make_missing_folders(folder)
    around = any(
        inner.is_relative_to(folder.resolve()) for inner in (Path.cwd(), Path(os.path.expanduser("~")))
    )
    if around or folder.stat().st_mode & stat.S_ISVTX:
        logger.warning("%s is not for jobs alone and stays open to those who can enter it now", folder)
    else:
        _take_from_others(folder)


def make_missing_folders(folder: Path) -> None:
    """Makes a folder and its missing parents, for its owner only. Raises OSError."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(_FOLDER_MODE, exist_ok=True)


def make_private_file(path: Path) -> None:
    """Makes an empty file that only its owner can read, or closes an existing one to other users.

    Raises OSError.
    """
    os.close(open_private(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
    _take_from_others(path)


def make_private_if_there(path: Path) -> None:
    """Closes a file to other users, if it exists. Raises OSError."""
    with suppress(FileNotFoundError):
        _take_from_others(path)


def open_private(path: str | Path, flags: int) -> int:
    """An opener for `open`. Nobody else can read a new file at any time, whatever the umask."""
    return os.open(path, flags, _FILE_MODE)


def _take_from_others(path: Path) -> None:
    was = stat.S_IMODE(path.stat().st_mode)
    if not was & _OTHERS:
        return
    try:
        path.chmod(was & ~_OTHERS)
    except PermissionError:  # another user's, such as the root of a mounted volume
        logger.warning("%s is open to other users (mode %o) and belongs to another user", path, was)
        return
    logger.warning("%s was open to other users (mode %o) and is now closed to them", path, was)
