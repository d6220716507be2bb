"""Textual inversions: learned words, from a folder of safetensors files."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from deployments.engine.prompt_text import Syntax

logger = logging.getLogger(__name__)

# The names of tensors in files for one text encoder, and for SDXL's two.
_OF_ONE = ("emb_params", "clip_l")
_OF_TWO = ("clip_l", "clip_g")


@dataclass(frozen=True, slots=True)
class Word:
    """A learned word. vectors: for each text encoder [tokens, width], as many tokens in all of them"""

    name: str
    vectors: tuple[torch.Tensor, ...]


def load_words(folder: Path, widths: Sequence[int]) -> list[Word]:
    """The words in a folder's files, by the files' names. What does not fit is left out, with a warning.

    widths: of each text encoder's embeddings
    """
    words = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            words.append(Word(path.stem, _vectors(load_file(path), path.stem, widths)))
        except (OSError, SafetensorError, ValueError) as error:
            logger.warning("the textual inversion %s is left out: %s", path, error)
    return words


def _vectors(
    tensors: Mapping[str, torch.Tensor], name: str, widths: Sequence[int]
) -> tuple[torch.Tensor, ...]:
    """Raises ValueError with the reason why they cannot be used."""
    names = _OF_TWO if len(widths) == 2 else (next((one for one in _OF_ONE if one in tensors), name),)
    if len(widths) == 1 and names[0] not in tensors and len(tensors) == 1:
        names = (next(iter(tensors)),)  # diffusers names it as the word, whatever the file is called
    if missing := [one for one in names if one not in tensors]:
        raise ValueError(f"it has no {' and '.join(missing)}, but {', '.join(tensors) or 'nothing'}")
    vectors = tuple(tensors[one].float().reshape(-1, tensors[one].shape[-1]) for one in names)
    for vector, width in zip(vectors, widths, strict=True):
        if vector.shape[1] != width:
            raise ValueError(f"it has {vector.shape[1]} values per token, and the text encoder {width}")
        if not torch.isfinite(vector).all():
            raise ValueError("it has values that are not numbers")
    if len({len(vector) for vector in vectors}) != 1:
        raise ValueError("it has unlike numbers of tokens for the two text encoders")
    return vectors


class Vocabulary:
    """The learned words that text encoders know, with their token ids.

    encoders: tokenizers and text encoders; their embeddings get the words' vectors behind their own
    """

    def __init__(self, words: Sequence[Word], encoders: Sequence[tuple[Any, Any]]) -> None:
        self._ids: dict[str, list[int]] = {}
        first = max((len(tokenizer) for tokenizer, _ in encoders), default=0)
        for word in words:
            count = len(word.vectors[0])
            self._ids[word.name] = list(range(first, first + count))
            first += count
        if words:
            for place, (tokenizer, encoder) in enumerate(encoders):
                _extend(
                    tokenizer, encoder, self._ids, [(word.name, word.vectors[place]) for word in words], first
                )
        longest_first = sorted(map(re.escape, self._ids), key=len, reverse=True)
        names = "|".join(longest_first) or r"(?!)"
        self._patterns: dict[Syntax, re.Pattern[str]] = {
            "plain": re.compile(f"<({names})>"),
            "a1111": re.compile(rf"(?<!\w)({names})(?!\w)"),
        }

    def mentions(self, text: str) -> bool:
        """Whether a plain text names a word."""
        return self._patterns["plain"].search(text) is not None

    def split(self, text: str, syntax: Syntax) -> list[str | list[int]]:
        """The text in pieces: text, and the token ids of the words that it names."""
        pieces: list[str | list[int]] = []
        done = 0
        for found in self._patterns[syntax].finditer(text):
            pieces += [text[done : found.start()], self._ids[found[1]]]
            done = found.end()
        return [piece for piece in (*pieces, text[done:]) if piece]


def _extend(
    tokenizer: Any,
    encoder: Any,
    ids: Mapping[str, Sequence[int]],
    vectors: Sequence[tuple[str, torch.Tensor]],
    size: int,
) -> None:
    """Gives a text encoder the words' vectors. Those of its own tokens keep their bits."""
    encoder.resize_token_embeddings(size, mean_resizing=False)
    weights = encoder.get_input_embeddings().weight
    with torch.no_grad():
        for name, values in vectors:
            weights[torch.tensor(ids[name])] = values.to(weights.device, weights.dtype)
    for module in encoder.modules():
        # By an id of 2, which old files have, transformers would take the highest id for the end of the text.
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = tokenizer.eos_token_id
