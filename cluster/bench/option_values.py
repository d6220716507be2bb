"""Values of options, read from text: right, or an error of one line that names the option."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")


class OneLineParser(argparse.ArgumentParser):
    """Its errors are one line, without the usage, which is long."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def told(read: Callable[[str], T]) -> Callable[[str], T]:
    """`read` for argparse, which keeps the sentence of a ValueError to itself."""

    def converted(text: str) -> T:
        try:
            return read(text)
        except OSError as error:
            raise argparse.ArgumentTypeError(f"{text}: {error.strerror or error}") from error
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return converted


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


def read_positives(text: str) -> list[float]:
    """From "0.5,1,2"."""
    return [read_positive(item) for item in text.split(",")]


def read_count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def read_positive_count(text: str) -> int:
    if (value := read_count(text)) == 0:
        raise ValueError(f"{text!r} is not above 0")
    return value


def read_writable_file(text: str) -> Path:
    """Its folder is made. Raises OSError where it cannot be written: before the minutes until it is."""
    path = Path(text)
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()
    if is_new:
        path.unlink()
    return path


def read_writable_folder(text: str) -> Path:
    """Likewise for a folder to write files to."""
    path = Path(text)
    read_writable_file(str(path / ".midstep"))
    return path


def read_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{text!r} is not a URL such as http://127.0.0.1:8000")
    return text


def read_name(text: str) -> str:
    if not text or "/" in text:
        raise ValueError(f"{text!r} is not a name that a file can have")
    return text


def read_system(text: str) -> tuple[str, str]:
    """From "NAME=URL"."""
    name, equals, url = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not NAME=URL")
    return read_name(name), read_url(url)


def read_prompts(path: Path) -> list[str]:
    if not (prompts := [line for line in path.read_text().splitlines() if line.strip()]):
        raise ValueError(f"{path}: has no prompts, one a line")
    return prompts
