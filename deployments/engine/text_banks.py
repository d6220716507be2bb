"""Adapters of a pipeline's text encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import diffusers

from deployments.engine.adapters import AdapterUse, rank_buckets, targets_of
from deployments.engine.bank import AdapterBank, Block, Layout, RowAdapters

# By digest and then by text encoder; only the text encoders that an adapter changes.
TextAdapters = Mapping[str, Mapping[str, Block]]


class TextBanks:
    """A bank for each text encoder, from the first text with adapters on. max_rank: as in AdapterBank"""

    def __init__(self, pipeline: diffusers.DiffusionPipeline, max_rank: int) -> None:
        self._pipeline = pipeline
        self._max_rank = max_rank
        self._buckets = rank_buckets(max_rank)
        self._banks: dict[str, AdapterBank] = {}

    @contextmanager
    def using(self, adapters: Sequence[AdapterUse], packed: TextAdapters) -> Iterator[None]:
        """Encodes all texts of a batch with these adapters, on this thread. packed: has all of them"""
        with ExitStack() as stack:
            for part in ("text_encoder", "text_encoder_2"):
                blocks = [
                    (packed[use.adapter.digest][part], use.scale)
                    for use in adapters
                    if part in packed[use.adapter.digest]
                ]
                if blocks:
                    bank = self._bank(part)
                    rows = sum(len(block.rows) for block, _ in blocks)
                    rank = next(one for one in self._buckets if one >= rows)
                    # One row of scales for all rows of the batch.
                    scales = bank.load([RowAdapters(1, blocks)], rank, in_order=True)
                    stack.enter_context(
                        bank.scaled(scales.transformers.to(bank.device), scales.others.to(bank.device))
                    )
            yield

    def _bank(self, part: str) -> AdapterBank:
        if part not in self._banks:
            encoder = getattr(self._pipeline, part)
            layout = Layout.of(targets_of(encoder))
            bank = AdapterBank(layout, self._max_rank, encoder.device, encoder.dtype)
            bank.attach(encoder)
            self._banks[part] = bank
        return self._banks[part]
