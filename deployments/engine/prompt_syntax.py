"""A1111's prompt syntax: weights, escapes and BREAK.

- `(word)` weighs 1.1 times as much and `[word]` 1.1 times less; brackets nest. `(word:1.3)` says the weight.
- A backslash before a bracket or a backslash makes it text.
- `BREAK`, as a word, ends a chunk of what the text encoder reads at once.
- A bracket that is never closed goes on to the end. One that was never opened is text, and so is one that
  would close around another kind.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from deployments.engine.prompt_adapters import TAG

UP = 1.1  # of a pair of brackets without a number
MAX_WEIGHT = 10.0

_TOKEN = re.compile(
    r"\\[\\()\[\]]"  # an escaped character
    r"|:\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)"  # the end of a bracket that says its weight
    r"|(?<!\w)BREAK(?!\w)"
    r"|[()\[\]]"
    r"|[^\\()\[\]:B]+|.",
    re.DOTALL,
)
_PAIRS = {")": ("(", UP), "]": ("[", 1 / UP)}


@dataclass(frozen=True, slots=True)
class Weighted:
    """A piece of a prompt that has one weight."""

    text: str
    weight: float


Chunk = Sequence[Weighted]


def parse(text: str) -> list[Chunk]:
    """The pieces of a prompt, in parts that `BREAK` divides; at least one part. It never fails."""
    pieces: list[str | None] = []  # None for BREAK
    opened: list[tuple[str, int]] = []  # brackets, and where their pieces begin
    spans: list[_Span] = []
    for token in _TOKEN.finditer(text):
        found, weight = token[0], token["weight"]
        inner = opened[-1][0] if opened else None
        if found in ("(", "["):
            opened.append((found, len(pieces)))
        elif weight is not None and inner == "(":
            spans.append(_Span(opened.pop()[1], len(pieces), float(weight)))
        elif found in _PAIRS and inner == _PAIRS[found][0]:
            spans.append(_Span(opened.pop()[1], len(pieces), _PAIRS[found][1]))
        elif found == "BREAK":
            pieces.append(None)
        else:
            is_escaped = len(found) == 2 and found[0] == "\\"
            pieces.append(found[1] if is_escaped else found)
    while opened:
        bracket, since = opened.pop()
        spans.append(_Span(since, len(pieces), UP if bracket == "(" else 1 / UP))
    return _joined(pieces, _weights(len(pieces), spans))


@dataclass(frozen=True, slots=True)
class _Span:
    """A bracket around the pieces from `since` on and before `until`."""

    since: int
    until: int
    factor: float


def _weights(num_pieces: int, closed: Sequence[_Span]) -> list[float]:
    """The product of the factors around each piece. closed: inner brackets before outer ones"""
    weights = []
    # The next to begin is last; of those that begin together, the outer one.
    waiting = sorted(closed, key=lambda span: -span.since)
    around: list[tuple[int, float]] = [(num_pieces, 1.0)]  # ends and products, outer ones first
    for index in range(num_pieces):
        while around[-1][0] <= index:
            around.pop()
        while waiting and waiting[-1].since == index:
            span = waiting.pop()
            if span.until > index:
                around.append((span.until, around[-1][1] * span.factor))
        weights.append(around[-1][1])
    return weights


def _joined(pieces: Sequence[str | None], weights: Sequence[float]) -> list[Chunk]:
    """The pieces between the breaks, neighbours of one weight as one."""
    chunks: list[list[Weighted]] = [[]]
    for weight, group in groupby(
        zip(weights, pieces, strict=True), key=lambda pair: (pair[1] is None, pair[0])
    ):
        texts = [text for _, text in group]
        if weight[0]:
            chunks += [[] for _ in texts]
        else:
            chunks[-1].append(Weighted("".join(text or "" for text in texts), weight[1]))
    return list(chunks)


_AND = re.compile(r"(?<!\w)AND(?!\w)")
_EXTRA = re.compile(r"<\w+:[^<>]*>")
_NUMBER = re.compile(r"\s*(?:\d+(?:\.\d*)?|\.\d+)\s*")


def problem(text: str) -> str | None:
    """What in a prompt of this syntax cannot be done, as the end of a sentence; None if there is nothing.

    text: without the adapters that it names (prompt_adapters)
    """
    for pattern, reason in (
        (TAG, "adapters change the whole picture; name them in the prompt and not in the negative one"),
        (_EXTRA, "only adapters can be named in a prompt (<lora:name:0.8>)"),
        (_AND, "several prompts at once are not offered; write it in small letters if it is a word"),
    ):
        if found := pattern.search(text):
            return f"{found[0][:60]!r} was given, and {reason}"
    for inside in _in_square_brackets(text):
        shown = repr(f"[{inside}]"[:60])
        if "|" in inside:
            return f"{shown} was given, and words that take turns are not offered"
        if ":" in inside and _NUMBER.fullmatch(inside.rpartition(":")[2]):
            return f"{shown} was given, and words that change at a step are not offered"
    for chunk in parse(text):
        for piece in chunk:
            if not (math.isfinite(piece.weight) and 0 <= piece.weight <= MAX_WEIGHT):
                shown = repr(piece.text.strip()[:40])
                return f"{shown} has the weight {piece.weight:g}; allowed are 0 to {MAX_WEIGHT:g}"
    return None


def _in_square_brackets(text: str) -> Iterator[str]:
    """The text of each pair of square brackets, without that of brackets in it."""
    inside: list[list[str]] = []
    for token in _TOKEN.finditer(text):
        if token[0] == "[":
            inside.append([])
        elif token[0] == "]" and inside:
            yield "".join(inside.pop())
        elif inside and not token[0].startswith("\\"):
            inside[-1].append(token[0])
