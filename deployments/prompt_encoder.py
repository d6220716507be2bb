"""The prompt encoding stage: an LRU cache of embeddings in front of batched text encoders."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace

import torch
from ray import serve
from ray.serve import metrics

from deployments.batching import Batching
from deployments.cost_measurement import CostMeasurement
from deployments.devices import text_encoder
from deployments.engine.cost import Curve
from deployments.engine.fitting import Fitting
from deployments.engine.messages import PromptEmbeds
from deployments.engine.model_source import ModelSource, Placement
from deployments.engine.prompt_chunks import EncodedText
from deployments.engine.prompt_text import PromptText, ReadText
from deployments.engine.stage_errors import StageError
from deployments.forwards import Forwards
from deployments.health import Health
from deployments.isolation import Turn, Turns
from deployments.recent import Recent
from deployments.work import Work

logger = logging.getLogger("ray.serve")


class PromptEncoder:
    """Serves a text encoder. num_threads: torch threads of this replica; cache_size: cached texts"""

    def __init__(
        self,
        source: ModelSource,
        placement: Placement,
        batching: Batching,
        num_threads: int,
        cache_size: int,
        measurement: CostMeasurement,
    ) -> None:
        self._encoder = text_encoder(source, placement, measurement.known)
        # Embeddings made alone and made in a batch are cached separately, because their bits may differ.
        self._cache: Recent[tuple[ReadText, bool], EncodedText] = Recent(cache_size)
        # One thread, since the tokenizers are not thread-safe.
        self._executor = ThreadPoolExecutor(1, "prompt-encoder", torch.set_num_threads, (num_threads,))
        self._health = Health()
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
            measurement.encode_cost, self._encoder.warm_up, self._max_batch_size
        ).result()

    async def encode(self, prompt: PromptText) -> PromptEmbeds:
        """Encodes a deterministic prompt in a batch of its own, any other together with other requests."""
        texts = self._encoder.texts(prompt)
        num_new = sum((text, prompt.deterministic) not in self._cache for text in texts)
        with self._work.of(num_new * self._cost.seconds_each(self._max_batch_size)):
            encoded = await asyncio.gather(*(self._encode(text, prompt.deterministic) for text in texts))
        logger.info("%d texts encoded, %d of them not cached", len(texts), num_new, extra={"stage": "encode"})
        return self._encoder.assemble(prompt, encoded)

    async def encode_isolated(self, prompt: PromptText) -> AsyncIterator[Turn | PromptEmbeds]:
        """Does `encode` alone and in its turn, for a prompt under which a replica died."""
        alone = replace(prompt, deterministic=True)
        async with aclosing(self._turns.isolated(lambda: self.encode(alone))) as events:
            async for event in events:
                yield event

    async def begin_turn(self, turn: Turn) -> None:
        self._turns.begin(turn)

    async def cost(self) -> Curve:
        """The cost of text encoding by texts."""
        return self._cost

    async def _encode(self, text: ReadText, deterministic: bool) -> EncodedText:
        key = (text, deterministic)
        known = self._cache.use(key)
        self._texts.inc(tags={"cache": "miss" if known is None else "hit"})
        if known is not None:
            return known
        result: EncodedText | StageError
        if deterministic:
            [result] = await self._run([text])
        else:
            result = await self._encode_together(text)
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
    async def _encode_together(self, texts: list[ReadText]) -> list[EncodedText | StageError]:
        return await self._run(texts)

    async def _run(self, texts: Sequence[ReadText]) -> list[EncodedText | StageError]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._encode_that_fits, texts)

    def _encode_that_fits(self, texts: Sequence[ReadText]) -> list[EncodedText | StageError]:
        with self._health.watching():  # all texts are padded or truncated to one length
            return self._fitting.run(None, texts, self._forward)

    def _forward(self, texts: Sequence[ReadText]) -> list[EncodedText | StageError]:
        with self._forwards.measured(len(texts), self._cost.seconds(len(texts))):
            return self._encoder.encode(texts)
