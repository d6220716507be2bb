"""What the sections of the configuration have in common: they are frozen, and unknown keys are errors."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """The configuration cannot be used; the message has a line per key."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


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
