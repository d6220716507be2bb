"""Why an adapter's file cannot be used."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 3  # of many keys or problems


class AdapterFileError(ValueError):
    """The file cannot be used. The message is sentences that name its keys, what was found and what is
    allowed."""


def listed(names: Sequence[str], shown: int = _SHOWN) -> str:
    """The first names, and how many others there are."""
    some = ", ".join(names[:shown])
    return f"{some} and {len(names) - shown} more" if len(names) > shown else some
