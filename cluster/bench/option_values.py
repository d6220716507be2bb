"""Reads option values from text. A wrong value gives an error of one line that says what is wrong."""

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

T = TypeVar("T")


class Read(click.ParamType[T]):
    """An option's type. Its value is the result of `read` on the text, or the error that `read` raises.

    metavar: name of the text in the help
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


def read_share(text: str) -> float:
    if (value := read_positive(text)) > 1:
        raise ValueError(f"{text!r} is above 1")
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
    """Reads "0.5,1,2"."""
    return [read_positive(item) for item in text.split(",")]


def _read_writable_file(text: str) -> Path:
    """Makes the file's folder. Raises OSError at once if the file cannot be written, not after a long run."""
    path = Path(text)
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()
    if is_new:
        path.unlink()
    return path


def _read_writable_folder(text: str) -> Path:
    """Makes the folder. Raises OSError if no file can be written to it."""
    path = Path(text)
    _read_writable_file(str(path / ".midstep"))
    return path


def _read_url(text: str) -> str:
    parts = urlsplit(text)
    with suppress(ValueError):  # of an impossible port
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return text
    raise ValueError(f"{text!r} is not a URL such as http://127.0.0.1:8000")


def _read_header_value(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise ValueError(f"{text!r} has characters besides those of ASCII")
    return text


def _read_name(text: str) -> str:
    if not text or "/" in text:
        raise ValueError(f"{text!r} is not a valid file name")
    return text


def _read_system(text: str) -> tuple[str, str]:
    """Reads "NAME=URL"."""
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
HEADER_VALUE = Read("text", _read_header_value)
NAME = Read("name", _read_name)
SYSTEM = Read("name=url", _read_system)
