"""Values of options, read from text: right, or an error of one line that says what is wrong."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

T = TypeVar("T")


class Read(click.ParamType[T]):
    """An option's type: its value is what `read` makes of the text, or the error that it raises.

    metavar: what help calls the text
    """

    def __init__(self, metavar: str, read: Callable[[str], T]) -> None:
        self.name = metavar
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        try:
            return self._read(value)
        except OSError as error:
            self.fail(f"{value}: {error.strerror or error}", param, ctx)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def read_not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{text!r} is not a number of at least 0")
    return value


def read_positive(text: str) -> float:
    if (value := read_not_negative(text)) == 0:
        raise ValueError(f"{text!r} is not above 0")
    return value


def read_count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def read_positive_count(text: str) -> int:
    if (value := read_count(text)) == 0:
        raise ValueError(f"{text!r} is not above 0")
    return value


def _read_positives(text: str) -> list[float]:
    """From "0.5,1,2"."""
    return [read_positive(item) for item in text.split(",")]


def _read_writable_file(text: str) -> Path:
    """Makes the file's folder. Raises OSError where it cannot be written: before the minutes until it is."""
    path = Path(text)
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()
    if is_new:
        path.unlink()
    return path


def _read_writable_folder(text: str) -> Path:
    """Makes the folder. Raises OSError where no file can be written to it."""
    path = Path(text)
    _read_writable_file(str(path / ".midstep"))
    return path


def _read_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{text!r} is not a URL such as http://127.0.0.1:8000")
    return text


def _read_name(text: str) -> str:
    if not text or "/" in text:
        raise ValueError(f"{text!r} is not a name that a file can have")
    return text


def _read_system(text: str) -> tuple[str, str]:
    """From "NAME=URL"."""
    name, equals, url = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not NAME=URL")
    return _read_name(name), _read_url(url)


NOT_NEGATIVE = Read("number", read_not_negative)
POSITIVE = Read("number", read_positive)
POSITIVES = Read("number,...", _read_positives)
COUNT = Read("count", read_count)
POSITIVE_COUNT = Read("count", read_positive_count)
WRITABLE_FILE = Read("file", _read_writable_file)
WRITABLE_FOLDER = Read("folder", _read_writable_folder)
URL = Read("url", _read_url)
NAME = Read("name", _read_name)
SYSTEM = Read("name=url", _read_system)
