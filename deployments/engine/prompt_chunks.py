"""Texts of any length and with weights, encoded in chunks of what a text encoder reads at once.

A text that fits into one chunk and has no weights gets the bits of diffusers' `encode_prompt`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from deployments.engine.embeddings import Vocabulary, load_words
from deployments.engine.messages import TokenCount
from deployments.engine.prompt_syntax import Weighted, parse
from deployments.engine.prompt_text import Reading, Syntax

# A full chunk ends at its last comma if fewer tokens than this follow it, so that no phrase is torn apart.
_MOST_AFTER_COMMA = 20
# The mean is restored as in A1111, but not where it is next to nothing against the spread, as after a plain
# LayerNorm, and never by more than this factor: that would multiply everything by chance.
_LEAST_MEAN = 1e-3
_MOST_RESTORED = 2.0


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One text's CPU embeddings: embeds [tokens, width], pooled [pooled width], width 0 except for SDXL."""

    embeds: torch.Tensor
    pooled: torch.Tensor
    tokens: TokenCount


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The tokens of a chunk, without start and end, and their weights."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True, slots=True)
class _Token:
    """glued: it belongs to the token before it, as part of one learned word"""

    id: int
    weight: float
    glued: bool


class ChunkEncoder:
    """Encodes texts with a pipeline's tokenizers and text encoders.

    embeddings: a folder of textual inversions, for which the text encoders get more tokens
    """

    def __init__(
        self, pipeline: diffusers.DiffusionPipeline, is_xl: bool, embeddings: Path | None = None
    ) -> None:
        self._pipeline = pipeline
        self._is_xl = is_xl
        self._encoders: list[tuple[Any, Any]] = [(pipeline.tokenizer, pipeline.text_encoder)]
        if is_xl:
            self._encoders.append((pipeline.tokenizer_2, pipeline.text_encoder_2))
        widths = [encoder.get_input_embeddings().embedding_dim for _, encoder in self._encoders]
        words = [] if embeddings is None else load_words(embeddings, widths)
        self._vocabulary = Vocabulary(words, self._encoders)
        # Without the start and the end.
        self._size: int = pipeline.tokenizer.model_max_length - 2

    def names_words(self, text: str) -> bool:
        """Whether a plain text names a textual inversion."""
        return self._vocabulary.mentions(text)

    def encode(self, texts: Sequence[str], reading: Reading, rows: int) -> list[EncodedText]:
        """rows: chunks in one batch"""
        divided = [self._divided(text, reading) for text in texts]
        flat = [chunk for chunks, _ in divided for chunk in chunks]
        batches = [
            self._encode_chunks(flat[start : start + rows], reading) for start in range(0, len(flat), rows)
        ]
        embeds, pooled = (torch.cat(parts) for parts in zip(*batches, strict=True))
        encoded, done = [], 0
        for chunks, tokens in divided:
            own = slice(done, done + len(chunks))
            done += len(chunks)
            weighted = self._weighted(embeds[own], chunks)
            encoded.append(EncodedText(weighted.flatten(0, 1), pooled[own][0].clone(), tokens))
        return encoded

    def _divided(self, text: str, reading: Reading) -> tuple[list[_Tokens], TokenCount]:
        """The chunks of a text that are read, at least one, and its tokens. Empty chunks are left out."""
        parts = parse(text) if reading.syntax == "a1111" else [[Weighted(text, 1.0)]]
        chunks: list[_Tokens] = []
        given = 0
        for part in parts:
            tokens = list(self._tokens(part, reading.syntax))
            given += len(tokens)
            chunks += self._filled(tokens, reading.max_chunks - len(chunks))
        read = sum(len(chunk.ids) for chunk in chunks)
        return chunks or [_Tokens([], [])], TokenCount(given + 2, read + 2)

    def _tokens(self, pieces: Sequence[Weighted], syntax: Syntax) -> Iterator[_Token]:
        for piece in pieces:
            for part in self._vocabulary.split(piece.text, syntax):
                is_word = not isinstance(part, str)
                ids = part if is_word else self._pipeline.tokenizer(part, add_special_tokens=False).input_ids
                for place, token in enumerate(ids):
                    yield _Token(token, piece.weight, is_word and place > 0)

    def _filled(self, tokens: Sequence[_Token], left: int) -> Iterator[_Tokens]:
        """The tokens in at most `left` chunks. What does not fit into one goes on at a comma or a learned
        word; the last one is filled, since nothing goes on after it."""
        [comma] = self._pipeline.tokenizer(",", add_special_tokens=False).input_ids
        while tokens and left > 0:
            left -= 1
            end = min(len(tokens), self._size)
            if len(tokens) > end and left > 0:
                near = range(end - _MOST_AFTER_COMMA, end)
                commas = [place + 1 for place in near if tokens[place].id == comma]
                whole = [place for place in range(1, end + 1) if not tokens[place].glued]
                end = max(commas or whole, default=end)
            yield _Tokens([one.id for one in tokens[:end]], [one.weight for one in tokens[:end]])
            tokens = tokens[end:]

    def _encode_chunks(
        self, chunks: Sequence[_Tokens], reading: Reading
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [chunks, tokens, width] and pooled ones [chunks, pooled width], on the CPU."""
        embeds, pooled = [], torch.empty(len(chunks), 0)
        for tokenizer, encoder in self._encoders:
            padding = [tokenizer.pad_token_id] * self._size
            rows = [
                [tokenizer.bos_token_id, *chunk.ids, tokenizer.eos_token_id, *padding[len(chunk.ids) :]]
                for chunk in chunks
            ]
            # The stock pipeline asks for hidden states only where it reads them, and bits may depend on that.
            needs_layers = self._is_xl or reading.clip_skip is not None
            options = {"output_hidden_states": True} if needs_layers else {}
            output = encoder(torch.tensor(rows, device=self._pipeline.device), **options)
            embeds.append(self._layer(encoder, output, reading.clip_skip).cpu())
            if output[0].ndim == 2:
                pooled = output[0].cpu()
        return torch.cat(embeds, dim=-1), pooled

    def _layer(self, encoder: Any, output: Any, clip_skip: int | None) -> torch.Tensor:
        """The layer that the U-Net reads, as in diffusers' pipelines. SDXL always leaves out the last one."""
        layers = output.hidden_states
        if self._is_xl:
            layer: torch.Tensor = layers[-2 - (clip_skip or 0)]
            return layer
        if clip_skip is None:
            last: torch.Tensor = output[0]
            return last
        normed: torch.Tensor = getattr(encoder, "text_model", encoder).final_layer_norm(
            layers[-1 - clip_skip]
        )
        return normed

    def _weighted(self, embeds: torch.Tensor, chunks: Sequence[_Tokens]) -> torch.Tensor:
        """Embeddings [chunks, tokens, width] times their tokens' weights; start, end and padding have 1."""
        if all(weight == 1 for chunk in chunks for weight in chunk.weights):
            return embeds.clone()
        factors = torch.ones(embeds.shape[:2], dtype=embeds.dtype)
        for row, chunk in zip(factors, chunks, strict=True):
            row[1 : len(chunk.ids) + 1] = torch.tensor(chunk.weights, dtype=embeds.dtype)
        weighted = embeds * factors[:, :, None]
        if self._is_xl:
            return weighted
        before, after = (one.float().mean(dim=(1, 2), keepdim=True) for one in (embeds, weighted))  # by chunk
        ratio = (before / after).clamp(1 / _MOST_RESTORED, _MOST_RESTORED)
        is_telling = before.abs() > _LEAST_MEAN * embeds.float().std(dim=(1, 2), keepdim=True)
        is_changed = (factors != 1).any(dim=1)[:, None, None]
        return weighted * torch.where(is_telling & is_changed, ratio, 1.0).to(weighted.dtype)
