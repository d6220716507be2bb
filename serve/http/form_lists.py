"""Lists in forms, as OpenAI's client writes them: `loras[][id]`, `loras[][scale]`, each once an adapter."""

import json
import re
from collections.abc import Sequence

from serve.errors import InvalidRequestError
from serve.http.loras import LORAS

_PART = re.compile(rf"({'|'.join(map(str, LORAS.choices))})(?:\[\]|(?:\[\])?\[(\w{{1,32}})\])")


def is_lora_part(name: str) -> bool:
    """Whether a form's field is a part of the field `loras`."""
    return _PART.fullmatch(name) is not None


def gathered_loras(parts: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The field that the parts make, as JSON text. parts: names and values, in the form's order

    Raises InvalidRequestError if it cannot be told which belong together.
    """
    columns: dict[str, dict[str, list[str]]] = {}
    for name, value in parts:
        field, key = _PART.fullmatch(name).group(1, 2)  # type: ignore[union-attr]
        columns.setdefault(field, {}).setdefault(key or "id", []).append(value)
    found = {}
    for field, of_field in columns.items():
        if len({len(values) for values in of_field.values()}) > 1:
            counts = ", ".join(f"{len(values)} of {key}" for key, values in of_field.items())
            raise InvalidRequestError(
                f"{field}: {counts} were given, so it cannot be told which belong together; give all of them "
                "for each adapter, or write the list as JSON text.",
                field,
            )
        rows = zip(*of_field.values(), strict=True)
        found[field] = json.dumps([dict(zip(of_field, row, strict=True)) for row in rows])
    return found
