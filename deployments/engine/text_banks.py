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
    """A bank for each text encoder. max_rank: as in AdapterBank"""

    def __init__(self, pipeline: diffusers.DiffusionPipeline, max_rank: int) -> None:
        self._buckets = rank_buckets(max_rank)
        self._banks: dict[str, AdapterBank] = {}
        for part in ("text_encoder", "text_encoder_2") if max_rank else ():
            if (encoder := getattr(pipeline, part, None)) is not None:
                bank = AdapterBank(Layout.of(targets_of(encoder)), max_rank, encoder.device, encoder.dtype)
                bank.attach(encoder)
                self._banks[part] = bank

    @contextmanager
    def using(self, adapters: Sequence[AdapterUse], packed: TextAdapters) -> Iterator[None]:
        """Encodes all texts of a batch with these adapters, on this thread. packed: has all of them"""
        with ExitStack() as stack:
            for part, bank in self._banks.items() if adapters else ():
                blocks = [
                    (packed[use.adapter.digest][part], use.scale)
                    for use in adapters
                    if part in packed[use.adapter.digest]
                ]
                rows = sum(len(block.rows) for block, _ in blocks)
                rank = next(one for one in self._buckets if one >= rows)
                # One row of scales for all rows of the batch.
                scales = bank.load([RowAdapters(1, blocks)], rank)
                stack.enter_context(bank.scaled(scales.to(bank.device)))
            yield
