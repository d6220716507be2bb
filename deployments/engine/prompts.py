"""Turns text into embeddings: with the stock pipeline's own `encode_prompt` where that can do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging

from deployments.engine.adapters import overflow
from deployments.engine.messages import NO_TOKENS, PromptEmbeds, TokenCount
from deployments.engine.prompt_chunks import ChunkEncoder, EncodedText
from deployments.engine.prompt_text import AS_DIFFUSERS, PromptText, ReadText
from deployments.engine.stage_errors import StageError, is_finite
from deployments.engine.text_banks import TextAdapters, TextBanks

# encode_prompt warns about every prompt that it truncates. Here the response says so instead.
diffusers_logging.set_verbosity_error()
diffusers_logging.disable_progress_bar()


def join_embeds(positive: EncodedText, negative: EncodedText | None) -> PromptEmbeds:
    """A prompt's embeddings."""
    return PromptEmbeds(
        prompt_embeds=positive.embeds,
        negative_prompt_embeds=negative.embeds if negative else None,
        pooled_prompt_embeds=positive.pooled,
        negative_pooled_prompt_embeds=negative.pooled if negative else None,
        tokens=positive.tokens,
        negative_tokens=negative.tokens if negative else NO_TOKENS,
    )


def _sound(text: ReadText, encoded: EncodedText) -> EncodedText | StageError:
    is_sound = is_finite(encoded.embeds, encoded.pooled)
    return encoded if is_sound else overflow("text encoder", text.adapters)


class TextEncoder:
    """Encodes texts. It keeps no state and is not thread-safe, because its tokenizers are not.

    embeddings: a folder of textual inversions; max_rank: as in AdapterBank
    """

    def __init__(
        self, pipeline: diffusers.DiffusionPipeline, embeddings: Path | None = None, max_rank: int = 0
    ) -> None:
        self._pipeline = pipeline
        self._is_xl = isinstance(
            pipeline, diffusers.StableDiffusionXLPipeline | diffusers.StableDiffusionXLInpaintPipeline
        )
        self._chunks = ChunkEncoder(pipeline, self._is_xl, embeddings)
        self._banks = TextBanks(pipeline, max_rank)

    @torch.inference_mode()
    def encode(
        self, texts: Sequence[ReadText], packed: TextAdapters | None = None
    ) -> list[EncodedText | StageError]:
        """Encodes all texts, in order, with an error for each that overflows.

        packed: all adapters that the texts name
        Those that are read as diffusers reads them go in one batch, through diffusers. The others go in
        batches of as many chunks as there are texts. Texts with other adapters go in batches of their own:
        encoding is little beside denoising, and most texts come from a cache.
        """
        done: dict[int, EncodedText | StageError] = {}
        ways = [(text.reading, self._is_stock(text), text.adapters) for text in texts]
        for reading, is_stock, adapters in set(ways):
            members = [index for index, way in enumerate(ways) if way == (reading, is_stock, adapters)]
            given = [texts[index].text for index in members]
            with self._banks.using(adapters, packed or {}):
                if is_stock:
                    encoded = self._encode_as_diffusers(given)
                else:
                    encoded = self._chunks.encode(given, reading, len(texts))
            done |= {index: _sound(texts[index], one) for index, one in zip(members, encoded, strict=True)}
        return [done[index] for index in range(len(texts))]

    def _is_stock(self, text: ReadText) -> bool:
        """Whether diffusers alone can encode it."""
        return text.reading == AS_DIFFUSERS and not self._chunks.names_words(text.text)

    def _encode_as_diffusers(self, texts: Sequence[str]) -> list[EncodedText]:
        encoded = self._pipeline.encode_prompt(
            prompt=list(texts),
            device=self._pipeline.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        pooled = encoded[2].cpu() if self._is_xl else torch.empty(len(texts), 0)
        # Copies, so that keeping one text does not keep its whole batch in memory.
        return [
            EncodedText(embeds.clone(), p.clone(), self._tokens(text))
            for text, embeds, p in zip(texts, encoded[0].cpu(), pooled, strict=True)
        ]

    def _tokens(self, text: str) -> TokenCount:
        tokenizer = self._pipeline.tokenizer
        given = len(tokenizer(text).input_ids)
        return TokenCount(given, min(given, tokenizer.model_max_length))

    def warm_up(self, num_texts: int) -> None:
        """Encodes some texts and waits for them, for warming up and measuring."""
        self.encode([ReadText("a rehearsal")] * num_texts)

    def texts(self, prompt: PromptText) -> list[ReadText]:
        """The texts to encode for a prompt: the prompt and, if needed, its negative prompt."""
        if not prompt.guided or self._zeroes_negative(prompt):
            return [ReadText(prompt.prompt, prompt.reading, prompt.adapters)]
        # diffusers skips layers for the prompt alone.
        of_negative = replace(prompt.reading, clip_skip=None)
        return [
            ReadText(prompt.prompt, prompt.reading, prompt.adapters),
            ReadText(prompt.negative_prompt or "", of_negative, prompt.adapters),
        ]

    def assemble(self, prompt: PromptText, encoded: Sequence[EncodedText]) -> PromptEmbeds:
        """A prompt's embeddings from the encoded `texts(prompt)`."""
        positive, negative = encoded[0], encoded[1] if len(encoded) > 1 else None
        if prompt.guided and self._zeroes_negative(prompt):
            nothing = torch.zeros_like(positive.embeds), torch.zeros_like(positive.pooled)
            negative = EncodedText(*nothing, NO_TOKENS)
        return join_embeds(positive, negative)

    def _zeroes_negative(self, prompt: PromptText) -> bool:
        zeroes = self._is_xl and self._pipeline.config.force_zeros_for_empty_prompt
        return prompt.negative_prompt is None and zeroes
