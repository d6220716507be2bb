"""Ids of jobs and files: as long as Replicate's."""

import re
import secrets

_NUM_BYTES = 13
_ID = re.compile(f"[0-9a-f]{{{2 * _NUM_BYTES}}}")


def new_id() -> str:
    return secrets.token_hex(_NUM_BYTES)


def is_id(text: str) -> bool:
    """Whether it can be an id. Databases refuse some characters that no id has."""
    return _ID.fullmatch(text) is not None
