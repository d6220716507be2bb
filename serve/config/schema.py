"""What the sections of the configuration have in common: they are frozen, and unknown keys are errors."""

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """The configuration cannot be used; the message has a line per key."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def expanded(key: str, path: str) -> Path:
    """The path with `~` as the home folder. Raises ConfigError with the key, where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{key}: {path!r} names no home folder") from error


def unknown_keys(schema: type[BaseModel], data: Any, path: str = "") -> Iterator[str]:
    """A sentence for each key of `data`, at any depth, that `schema` does not know."""
    if not isinstance(data, Mapping):
        return
    names = {field.alias or name: field.annotation for name, field in schema.model_fields.items()}
    for key, value in data.items():
        if key not in names:
            nearest = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)
            yield f"{path}{key}: unknown key; the nearest one is {nearest[0]!r}"
            continue
        for nested in models_in(names[key]):
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                place = f"{path}{key}[{index}]." if isinstance(value, list) else f"{path}{key}."
                yield from unknown_keys(nested, item, place)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that an annotation mentions, through Optional, list and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def keys_table(schema: type[BaseModel]) -> str:
    """Every key of it with its default and meaning, as a Markdown table."""
    rows = [f"| `{key}` | {default} | {text} |" for key, default, text in _keys(schema)]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _keys(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from _keys(type(default), f"{path}{name}.")
            continue
        shown = "required" if field.is_required() else f"`{json.dumps(default)}`"
        yield f"{path}{name}", shown, field.description or ""
        for item in models_in(field.annotation):
            yield from _keys(item, f"{path}{name}[].")
