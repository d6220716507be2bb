"""Why an adapter's file cannot be used."""

from __future__ import annotations

from collections.abc import Sequence

_NUM_SHOWN = 3  # of many keys or problems
_MAX_SHOWN = 160  # characters


class AdapterFileError(ValueError):
    """The file cannot be used. The message is sentences that name its keys, what was found and what is
    allowed."""


class AdapterChangedError(AdapterFileError):
    """The file is another than when it was looked at, or gone."""


def shown(name: str) -> str:
    """A key of a file as messages have it: a strange one may be of any length."""
    return name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}..."


def listed(names: Sequence[str], num_shown: int = _NUM_SHOWN) -> str:
    """The first names, and how many others there are."""
    some = ", ".join(map(shown, names[:num_shown]))
    return f"{some} and {len(names) - num_shown} more" if len(names) > num_shown else some
