"""A prompt before it is encoded."""

import re
from dataclasses import dataclass

_NUMBER = r"\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)\s*"
# Commands of other programs. No two repetitions can match the same text, so matching takes linear time.
_SYNTAX = re.compile(
    rf"\([^()]*:{_NUMBER}\)|\[[^\[\]:]*:[^\[\]:]*:{_NUMBER}\]|\bBREAK\b|<(?:lora|lyco|hypernet):[^<>]*>"
)


def literal_syntax(text: str) -> str | None:
    """The first command of other programs in a text, such as `(word:1.4)`. Here it is read as words."""
    found = _SYNTAX.search(text)
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class PromptText:
    """A prompt to encode.

    negative_prompt: None differs from empty: SDXL uses zeros for None, as diffusers does
    guided: whether negative embeddings are needed at all
    deterministic: encodes it in a batch of its own, so that the embeddings do not depend on other prompts
    """

    prompt: str
    negative_prompt: str | None
    guided: bool
    deterministic: bool
