"""A prompt before it is encoded."""

import re
from dataclasses import dataclass
from typing import Literal

from deployments.engine.adapters import AdapterUse

_NUMBER = r"\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)\s*"
# Commands of other programs. No two repetitions can match the same text, so matching takes linear time.
_SYNTAX = re.compile(
    rf"\([^()]*:{_NUMBER}\)|\[[^\[\]:]*:[^\[\]:]*:{_NUMBER}\]|\bBREAK\b|<(?:lora|lyco|hypernet):[^<>]*>"
)


def literal_syntax(text: str) -> str | None:
    """The first command of other programs in a text, such as `(word:1.4)`. Here it is read as words."""
    found = _SYNTAX.search(text)
    return found[0] if found else None


Syntax = Literal["plain", "a1111"]


@dataclass(frozen=True, slots=True)
class Reading:
    """How a text is read.

    syntax: plain takes every character as it is; a1111 has weights and breaks (prompt_syntax)
    max_chunks: how many times what the text encoder reads at once; the rest is cut off
    clip_skip: last layers of the text encoder that are left out, as diffusers counts them; None for none
    """

    syntax: Syntax = "plain"
    max_chunks: int = 1
    clip_skip: int | None = None


AS_DIFFUSERS = Reading()


@dataclass(frozen=True, slots=True)
class ReadText:
    """One text, how it is read, and the adapters of the text encoders that read it."""

    text: str
    reading: Reading = AS_DIFFUSERS
    adapters: tuple[AdapterUse, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptText:
    """A prompt to encode.

    negative_prompt: None differs from empty: SDXL uses zeros for None, as diffusers does
    guided: whether negative embeddings are needed at all
    deterministic: encodes it in a batch of its own, so that the embeddings do not depend on other prompts
    adapters: those of the text encoders
    """

    prompt: str
    negative_prompt: str | None
    guided: bool
    deterministic: bool
    reading: Reading = AS_DIFFUSERS
    adapters: tuple[AdapterUse, ...] = ()
