"""pydantic's errors as sentences, each with the key as it is written in the file."""

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails


def sentences(error: ValidationError, data: Any, place: str = "") -> list[str]:
    """A sentence for each key in `data` that pydantic rejects. place: prefix of every named key"""
    by_place: dict[str, str] = {}
    for item in error.errors():
        by_place.setdefault(_place(item["loc"], data, place), _sentence(item))
    return [f"{where}: {sentence}" if where else sentence for where, sentence in by_place.items()]


def _sentence(item: ErrorDetails) -> str:
    context = item.get("ctx", {})
    match item["type"]:
        case "missing":
            return "is missing"
        case "value_error":
            return str(context["error"])
        case "enum" | "literal_error":
            return f"{item['input']!r} was given; allowed are {context['expected']}"
    return item["msg"]  # without the given value, which may be a secret


def _place(location: tuple[int | str, ...], data: Any, place: str) -> str:
    """The key's path in the file. Drops the types that pydantic tried, which nobody has written."""
    for part in location:
        if isinstance(data, list) and isinstance(part, int):
            place += f"[{part}]"
            data = data[part] if part < len(data) else None
        elif isinstance(data, dict) and isinstance(part, str):
            place += f".{part}" if place else part
            data = data.get(part)
    return place
