"""The common base of all sections: they are frozen, and unknown keys are errors."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

# Marks of fields in json_schema_extra: MAIN for keys that most people need, HIDDEN for keys that nobody needs
# to change. `shown_default` is the default in the table of keys.
MAIN: dict[str, Any] = {"main": True}
HIDDEN: dict[str, Any] = {"hidden": True}

_NEAR = 0.7  # of difflib's 0 to 1


class ConfigError(ValueError):
    """The configuration cannot be used. The message has a line per key."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def expanded(key: str, path: str) -> Path:
    """The path with `~` as the home folder. Raises ConfigError with the key if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{key}: {path!r} names no home folder") from error


def unknown_keys(
    schema: type[BaseModel], data: Any, path: str = "", old_keys: Mapping[str, str] = {}
) -> Iterator[str]:
    """A sentence for each key of `data`, at any depth, that `schema` does not know.

    path: prefix of every named key; old_keys: replacements of earlier keys
    """
    places = dict(reversed(list(_places(schema))))  # the first place of each name
    return (f"{path}{key}: {sentence}" for key, sentence in _unknown_keys(schema, data, "", old_keys, places))


def _unknown_keys(
    schema: type[BaseModel],
    data: Any,
    path: str,
    old_keys: Mapping[str, str],
    places: Mapping[str, str],
) -> Iterator[tuple[str, str]]:
    """Pairs of a key and its problem. places: where a key of some name is"""
    if not isinstance(data, Mapping):
        return
    names = {field.alias or name: field.annotation for name, field in schema.model_fields.items()}
    for key, value in data.items():
        if key not in names:
            if old := list(_old_keys(f"{path}{key}", value, old_keys)):
                yield from old
                continue
            if nearest := difflib.get_close_matches(str(key), names, n=1, cutoff=_NEAR):
                yield f"{path}{key}", f"unknown key; the nearest one is {nearest[0]!r}"
            elif key in places:
                yield f"{path}{key}", f"unknown key here; there is {places[key]}"
            else:
                yield f"{path}{key}", f"unknown key; known are {', '.join(names)}"
            continue
        for nested in models_in(names[key]):
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                place = f"{path}{key}[{index}]." if isinstance(value, list) else f"{path}{key}."
                yield from _unknown_keys(nested, item, place, old_keys, places)


def _places(schema: type[BaseModel], path: str = "") -> Iterator[tuple[str, str]]:
    """Pairs of a key's name and its path, for every key of a schema."""
    for name, field in schema.model_fields.items():
        yield name, f"{path}{name}"
        for nested in models_in(field.annotation):
            yield from _places(nested, f"{path}{name}.")


def _old_keys(key: str, value: Any, old_keys: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of an old key and its replacement, for the key itself or keys below it."""
    if key in old_keys:
        yield key, old_keys[key]
    elif isinstance(value, Mapping):
        for name, nested in value.items():
            yield from _old_keys(f"{key}.{name}", nested, old_keys)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that an annotation mentions, through Optional, list and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]
