"""A prompt as it is asked for, before it is encoded."""

import re
from dataclasses import dataclass

_NUMBER = r"\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)\s*"
# What other programs read as commands. No two repetitions can match the same text: it is read in linear time.
_SYNTAX = re.compile(
    rf"\([^()]*:{_NUMBER}\)|\[[^\[\]:]*:[^\[\]:]*:{_NUMBER}\]|\bBREAK\b|<(?:lora|lyco|hypernet):[^<>]*>"
)


def literal_syntax(text: str) -> str | None:
    """The first command to other programs in a text, such as `(word:1.4)`: here it is read as words."""
    found = _SYNTAX.search(text)
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class PromptText:
    """What is to be encoded.

    negative_prompt: None is not the same as empty: SDXL answers None with zeros, as diffusers does
    guided: whether negative embeddings are wanted at all
    deterministic: encoded in a batch of its own, so that the embeddings do not depend on what else is encoded
    """

    prompt: str
    negative_prompt: str | None
    guided: bool
    deterministic: bool
