"""The tables of the configuration's keys, in Markdown: `midstep keys` prints them."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from serve.config.schema import models_in

_HEADER = ("| key | type | default | meaning |", "|---|---|---|---|")
_TYPES = {str: "text", bool: "boolean", int: "integer", float: "number", dict: "mapping", NoneType: "`null`"}


@dataclass(frozen=True, slots=True)
class Key:
    """A row of the table. names: all sections' keys with this meaning"""

    names: tuple[str, ...]
    type: str
    default: str
    meaning: str
    is_main: bool

    @property
    def section(self) -> str:
        """The key's section in the table."""
        sections = {name.partition(".")[0].removesuffix("[]") for name in self.names}
        return "Several sections" if len(sections) > 1 else f"`{sections.pop()}`"

    def row(self) -> str:
        names = ", ".join(f"`{name}`" for name in self.names)
        return f"| {names} | {self.type} | {self.default} | {self.meaning} |"


def keys_of(schema: type[BaseModel]) -> list[Key]:
    """All keys except hidden ones, in order. A key that several sections share appears once."""
    rows: dict[tuple[str, ...], Key] = {}
    for key in _keys(schema):
        [name] = key.names
        same = (name.rpartition(".")[2], key.type, key.default, key.meaning)
        known = rows.get(same)
        rows[same] = replace(known, names=(*known.names, name)) if known else key
    return list(rows.values())


def keys_tables(schema: type[BaseModel]) -> str:
    """A table of each section's keys, and one of the keys that several sections share."""
    by_section: dict[str, list[Key]] = {}
    for key in keys_of(schema):
        by_section.setdefault(key.section, []).append(key)
    return "\n\n".join(f"## {section}\n\n{_table(keys)}" for section, keys in by_section.items())


def main_keys_table(schema: type[BaseModel]) -> str:
    """The keys that most people need to know, in one table."""
    return _table(key for key in keys_of(schema) if key.is_main)


def _table(keys: Iterable[Key]) -> str:
    return "\n".join([*_HEADER, *(key.row() for key in keys)])


def _keys(section: type[BaseModel], path: str = "") -> Iterator[Key]:
    for name, field in section.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if extra.get("hidden"):
            continue
        nested = models_in(field.annotation)
        if nested == [field.annotation] and "shown_default" not in extra:
            yield from _keys(nested[0], f"{path}{name}.")
            continue
        yield Key(
            names=(f"{path}{name}",),
            type=type_name(field.annotation),
            default=str(extra.get("shown_default") or _default(field)),
            meaning=field.description or "",
            is_main=bool(extra.get("main")),
        )
        if nested != [field.annotation]:
            for item in nested:
                yield from _keys(item, f"{path}{name}[].")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return f"`{json.dumps(field.get_default(call_default_factory=True))}`"


def type_name(annotation: Any) -> str:
    """The allowed values in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        name = ", ".join(f"`{value}`" for value in arguments)
    elif origin in (Union, UnionType):
        # Words come first, such as `auto`, and the absence of a value last.
        name = " or ".join(map(type_name, sorted(arguments, key=_order)))
    elif origin is tuple:
        name = f"list of {type_name(arguments[0])}"
    elif hasattr(annotation, "__metadata__"):
        name = type_name(arguments[0])
    elif models_in(annotation):
        name = "mapping"
    else:
        name = _TYPES[origin or annotation]
    return name


def _order(annotation: Any) -> int:
    return 2 if annotation is NoneType else 0 if get_origin(annotation) is Literal else 1
