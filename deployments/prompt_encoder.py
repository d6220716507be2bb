"""The prompt encoding stage: an LRU cache of embeddings in front of batched text encoders."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from functools import partial

import torch
from ray import serve
from ray.serve import metrics

from deployments.batching import Batching
from deployments.cost_measurement import CostMeasurement
from deployments.devices import text_encoder
from deployments.engine.adapters import AdapterMemory
from deployments.engine.cost import Curve
from deployments.engine.fitting import Fitting
from deployments.engine.messages import PromptEmbeds
from deployments.engine.model_source import ModelRef, Placement
from deployments.engine.prompt_chunks import EncodedText
from deployments.engine.prompt_text import PromptText, ReadText
from deployments.engine.prompts import TextEncoder
from deployments.engine.simulated import SimulatedTextEncoder
from deployments.engine.stage_errors import StageError
from deployments.engine.text_banks import TextAdapters
from deployments.engine.unet_loader import loading_thread
from deployments.forwards import Forwards
from deployments.health import Health
from deployments.isolation import Turn, Turns
from deployments.packed_adapters import TEXT_ENCODERS, PackedAdapters
from deployments.recent import Recent
from deployments.shelf import Shelf
from deployments.work import Work

logger = logging.getLogger("ray.serve")

_Encoder = TextEncoder | SimulatedTextEncoder
_TextOf = tuple[_Encoder, ReadText, TextAdapters]


class PromptEncoder:
    """Serves text encoders.

    model: the one that is there from the start; num_models: how many are kept loaded
    num_threads: torch threads of this replica; cache_size: cached texts
    max_rank: as in AdapterBank; adapters: memory for them
    """

    def __init__(
        self,
        model: ModelRef,
        placement: Placement,
        batching: Batching,
        num_threads: int,
        num_models: int,
        cache_size: int,
        max_rank: int,
        adapters: AdapterMemory,
        measurement: CostMeasurement,
    ) -> None:
        def load(one: ModelRef) -> _Encoder:
            return text_encoder(one.source, placement, measurement.known, max_rank)

        first = load(model)
        loading = loading_thread(placement)
        self._health = Health()
        self._adapters = PackedAdapters(TEXT_ENCODERS, placement, adapters.host_bytes, self._health.failed)
        self._encoders = Shelf(
            load, lambda one: one.text, num_models, loading, (model, first), self._health.lost
        )
        # Embeddings made alone and made in a batch are cached separately, because their bits may differ.
        self._cache: Recent[tuple[str, ReadText, bool], EncodedText] = Recent(cache_size)
        # One thread, since the tokenizers are not thread-safe.
        self._executor = ThreadPoolExecutor(1, "prompt-encoder", torch.set_num_threads, (num_threads,))
        self._fitting = Fitting("texts", self._health.halved)
        self._turns = Turns()
        self._work = Work()
        self._forwards = Forwards()
        self._texts = metrics.Counter(
            "midstep_prompt_texts_total", "Requested texts, by whether they were cached.", ("cache",)
        )
        self._max_batch_size = batching.max_batch_size
        batching.apply_to(self._encode_together)
        # On the thread that will encode, because torch's number of threads is set per thread.
        self._cost = self._executor.submit(
            measurement.encode_cost, first.warm_up, self._max_batch_size
        ).result()

    async def encode(self, prompt: PromptText, model: ModelRef) -> PromptEmbeds:
        """Encodes a deterministic prompt in a batch of its own, any other together with other requests."""
        async with self._adapters.of(prompt.adapters, model) as packed, self._encoders.part(model) as encoder:
            texts = encoder.texts(prompt)
            keys = [(model.text, text, prompt.deterministic) for text in texts]
            num_new = sum(key not in self._cache for key in keys)
            with self._work.of(num_new * self._cost.seconds_each(self._max_batch_size)):
                encoded = await asyncio.gather(*(self._encode(encoder, key, packed) for key in keys))
            logger.info(
                "%d texts encoded, %d of them not cached", len(texts), num_new, extra={"stage": "encode"}
            )
            return encoder.assemble(prompt, encoded)

    async def encode_isolated(
        self, prompt: PromptText, model: ModelRef
    ) -> AsyncIterator[Turn | PromptEmbeds]:
        """Does `encode` alone and in its turn, for a prompt under which a replica died."""
        alone = replace(prompt, deterministic=True)
        async with aclosing(self._turns.isolated(lambda: self.encode(alone, model))) as events:
            async for event in events:
                yield event

    async def begin_turn(self, turn: Turn) -> None:
        self._turns.begin(turn)

    async def cost(self, _: ModelRef) -> Curve:
        """The cost of text encoding by texts. Other models' encoders count as the first one's: what they take
        is little beside the images."""
        return self._cost

    async def _encode(
        self, encoder: _Encoder, key: tuple[str, ReadText, bool], packed: TextAdapters
    ) -> EncodedText:
        known = self._cache.use(key)
        self._texts.inc(tags={"cache": "miss" if known is None else "hit"})
        if known is not None:
            return known
        _, text, deterministic = key
        result: EncodedText | StageError
        if deterministic:
            [result] = await self._run([(encoder, text, packed)])
        else:
            result = await self._encode_together((encoder, text, packed))
        encoded = self._health.check_result(result)
        self._cache.keep(key, encoded)
        return encoded

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve for autoscaling."""
        return self._work.stats()

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        self._health.check()

    @serve.batch  # type: ignore[untyped-decorator]
    async def _encode_together(self, texts: list[_TextOf]) -> list[EncodedText | StageError]:
        return await self._run(texts)

    async def _run(self, texts: Sequence[_TextOf]) -> list[EncodedText | StageError]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._encode_that_fits, texts)

    def _encode_that_fits(self, texts: Sequence[_TextOf]) -> list[EncodedText | StageError]:
        """One call for each encoder."""
        done: dict[int, EncodedText | StageError] = {}
        for encoder in {id(encoder): encoder for encoder, _, _ in texts}.values():
            members = [index for index, (one, _, _) in enumerate(texts) if one is encoder]
            with self._health.watching():  # all texts are padded or truncated to one length
                given = [texts[index][1] for index in members]
                packed = {name: blocks for index in members for name, blocks in texts[index][2].items()}
                results = self._fitting.run(None, given, partial(self._forward, encoder, packed))
            done |= zip(members, results, strict=True)
        return [done[index] for index in range(len(texts))]

    def _forward(
        self, encoder: _Encoder, packed: TextAdapters, texts: Sequence[ReadText]
    ) -> list[EncodedText | StageError]:
        with self._forwards.measured(len(texts), self._cost.seconds(len(texts))):
            return encoder.encode(texts, packed)
