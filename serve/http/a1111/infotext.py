"""Reads A1111's text about a picture: the prompts, and a last line of `name: value` pairs."""

import json
import re

_LEAST_PAIRS = 3  # in a last line; a prompt may have some too
_MOST_READ = 1 << 16  # characters of the last line
_NEGATIVE = "Negative prompt:"
# A value with commas, colons or line breaks is quoted as in JSON.
_PAIR = re.compile(r'(?P<name>\w[\w /-]{0,60}\w):[ \t]*(?P<value>"(?:[^"\\]|\\.)*"|[^,]*)(?:,\s*|$)')
_SIZE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})")


def parameters_of(text: str) -> dict[str, str]:
    """The values by A1111's names. A size such as `Size: 512x768` is also there by its sides, `Size-1` and
    `Size-2`. Empty for an empty text."""
    if not text.strip():
        return {}
    *lines, last = text.strip().split("\n")
    pairs = list(_PAIR.finditer(last[:_MOST_READ]))
    if len(pairs) < _LEAST_PAIRS:
        lines, pairs = [*lines, last], []
    prompt, negative = _prompts([line.strip() for line in lines])
    values = {"Prompt": prompt, "Negative prompt": negative}
    for pair in pairs:
        name, value = pair["name"], _unquoted(pair["value"].strip())
        values[name] = value
        if size := _SIZE.fullmatch(value):
            values[f"{name}-1"], values[f"{name}-2"] = size[1], size[2]
    return values


def _prompts(lines: list[str]) -> tuple[str, str]:
    for index, line in enumerate(lines):
        if line.startswith(_NEGATIVE):
            negative = [line.removeprefix(_NEGATIVE).strip(), *lines[index + 1 :]]
            return "\n".join(lines[:index]), "\n".join(negative)
    return "\n".join(lines), ""


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
