"""The decoding stage: turns latents into picture files and quick previews."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from itertools import islice

import torch
from ray import serve

from deployments.batching import Batching
from deployments.cost_measurement import CostMeasurement
from deployments.devices import latent_decoder
from deployments.engine.cost import StageCost
from deployments.engine.fitting import Fitting
from deployments.engine.images import Pixels, encode_image
from deployments.engine.messages import EncodedImage, ImageFormat, LatentShape
from deployments.engine.model_source import ModelSource, Placement
from deployments.engine.stage_errors import StageError
from deployments.forwards import Forwards
from deployments.health import Health
from deployments.isolation import Turn, Turns
from deployments.work import Work

logger = logging.getLogger("ray.serve")


class VaeDecoder:
    """Serves a VAE. num_threads: torch threads of this replica

    max_hold_s: longest call in seconds; larger batches are split, since others may share the device
    """

    def __init__(
        self,
        source: ModelSource,
        placement: Placement,
        batching: Batching,
        num_threads: int,
        max_hold_s: float,
        measurement: CostMeasurement,
    ) -> None:
        # One thread, so that the VAE's memory on the device is needed only once.
        self._executor = ThreadPoolExecutor(1, "vae-decoder", torch.set_num_threads, (num_threads,))
        self._decoder = latent_decoder(source, placement, measurement.known)
        self._health = Health()
        self._fitting = Fitting("images", self._health.halved)
        self._turns = Turns()
        self._work = Work()
        self._forwards = Forwards()
        self._max_hold_s = max_hold_s
        self._max_batch_size = batching.max_batch_size
        # On the thread that will decode, because torch's number of threads is set per thread.
        self._cost = self._executor.submit(
            measurement.decode_cost, self._decoder.warm_up, self._max_batch_size
        ).result()
        batching.apply_to(self._decode_together)

    async def decode(
        self,
        latents: torch.Tensor,
        image_format: ImageFormat,
        metadata: Mapping[str, str],
        deterministic: bool,
    ) -> EncodedImage:
        """latents: [C, h, w], scaled. Deterministic latents are decoded in a batch of their own."""
        shape = (latents.shape[1], latents.shape[2])
        with self._work.of(self._cost.curve(shape).seconds_each(self._max_batch_size)):
            if deterministic:
                [result] = await self._run([latents])
            else:
                result = await self._decode_together(latents)
            pixels = self._health.check_result(result)
        image = await asyncio.to_thread(encode_image, pixels, image_format, metadata)
        logger.info("made %d bytes of %s", len(image.data), image.media_type, extra={"stage": "decode"})
        return image

    async def decode_isolated(
        self,
        latents: torch.Tensor,
        image_format: ImageFormat,
        metadata: Mapping[str, str],
        deterministic: bool,
    ) -> AsyncIterator[Turn | EncodedImage]:
        """Does `decode` alone and in its turn, for latents under which a replica died."""
        work = partial(self.decode, latents, image_format, metadata, True)
        async with aclosing(self._turns.isolated(work)) as events:
            async for event in events:
                yield event

    async def begin_turn(self, turn: Turn) -> None:
        self._turns.begin(turn)

    async def preview(self, latents: torch.Tensor, image_format: ImageFormat) -> EncodedImage:
        """Makes a rough picture of unfinished latents [C, h, w], in full size, without the VAE."""
        pixels = await asyncio.to_thread(self._decoder.preview, latents)
        return await asyncio.to_thread(encode_image, pixels, image_format, {})

    async def cost(self) -> StageCost:
        """The cost of VAE decoding by images."""
        return self._cost

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve for autoscaling."""
        return self._work.stats()

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        self._health.check()

    @serve.batch  # type: ignore[untyped-decorator]
    async def _decode_together(self, latents: list[torch.Tensor]) -> list[Pixels | StageError]:
        return await self._run(latents)

    async def _run(self, latents: Sequence[torch.Tensor]) -> list[Pixels | StageError]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._decode_watched, latents)

    def _decode_watched(self, latents: Sequence[torch.Tensor]) -> list[Pixels | StageError]:
        with self._health.watching():
            return self._decode_by_shape(latents)

    def _decode_by_shape(self, latents: Sequence[torch.Tensor]) -> list[Pixels | StageError]:
        decoded: dict[int, Pixels | StageError] = {}
        for shape in {item.shape for item in latents}:
            members = [index for index, item in enumerate(latents) if item.shape == shape]
            left = iter(members)
            for size in self._cost.parts((shape[1], shape[2]), len(members), self._max_hold_s):
                chunk = list(islice(left, size))
                pixels = self._decode_that_fits((shape[1], shape[2]), [latents[index] for index in chunk])
                decoded |= zip(chunk, pixels, strict=True)
        return [decoded[index] for index in range(len(latents))]

    def _decode_that_fits(
        self, shape: LatentShape, latents: Sequence[torch.Tensor]
    ) -> list[Pixels | StageError]:
        def decode(part: Sequence[torch.Tensor]) -> list[Pixels | StageError]:
            with self._forwards.measured(len(part), self._cost.seconds(shape, len(part))):
                return self._decoder.decode(part)

        return self._fitting.run(shape, latents, decode)
