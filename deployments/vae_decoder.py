"""The decoding stage: makes picture files and previews of latents, and latents of pictures to start from."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from ray import serve

from deployments.batching import Batching
from deployments.cost_measurement import CostMeasurement
from deployments.devices import vae
from deployments.engine.cost import StageCost
from deployments.engine.fitting import Fitting
from deployments.engine.images import Pixels, encode_image
from deployments.engine.messages import (
    EncodedImage,
    EncodedPicture,
    ImageFormat,
    LatentShape,
    Picture,
    Upscaler,
)
from deployments.engine.model_source import ModelSource, Placement
from deployments.engine.pictures import (
    PreparedPicture,
    enlarged,
    enlarged_latents,
    laid_around,
    prepare_picture,
)
from deployments.engine.stage_errors import StageError
from deployments.forwards import Forwards
from deployments.health import Health
from deployments.isolation import Turn, Turns
from deployments.recent import Recent
from deployments.shaped_batches import ShapedBatches
from deployments.work import Work

logger = logging.getLogger("ray.serve")
Item = TypeVar("Item")
Result = TypeVar("Result")

_KEPT_PICTURES = 64  # encoded ones, of a megabyte at most in usual sizes


class VaeDecoder:
    """Serves a VAE, in both directions. num_threads: torch threads of this replica

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
        self._vae = vae(source, placement, measurement.known)
        self._health = Health()
        self._turns = Turns()
        self._work = Work()
        self._max_batch_size = batching.max_batch_size
        self._encoded: Recent[tuple[bytes, bool], EncodedPicture] = Recent(_KEPT_PICTURES)
        # On the thread that will decode, because torch's number of threads is set per thread.
        most = self._max_batch_size
        self._decode_cost = self._executor.submit(
            measurement.decode_cost, self._vae.decoder.warm_up, most
        ).result()
        self._encode_cost = self._executor.submit(
            measurement.encode_picture_cost, self._vae.encoder.warm_up, most
        ).result()
        forwards = Forwards()
        self._decodings: ShapedBatches[torch.Tensor, Pixels] = ShapedBatches(
            self._vae.decoder.decode,
            _shape_of_latents,
            self._decode_cost,
            max_hold_s,
            Fitting("images", self._health.halved),
            forwards,
        )
        self._encodings: ShapedBatches[PreparedPicture, EncodedPicture] = ShapedBatches(
            self._vae.encoder.encode,
            self._shape_of_picture,
            self._encode_cost,
            max_hold_s,
            Fitting("pictures", self._health.halved),
            forwards,
        )
        batching.apply_to(self._decode_together)
        batching.apply_to(self._encode_together)

    async def decode(
        self,
        latents: torch.Tensor,
        image_format: ImageFormat,
        metadata: Mapping[str, str],
        deterministic: bool,
        around: Picture | None = None,
    ) -> EncodedImage:
        """latents: [C, h, w], scaled. Deterministic latents are decoded in a batch of their own.

        around: a picture with a mask; what the mask keeps is laid around the result
        """
        pixels = await self._pixels(latents, deterministic)

        def written() -> EncodedImage:
            whole = pixels if around is None else laid_around(pixels, around)
            return encode_image(whole, image_format, metadata)

        image = await asyncio.to_thread(written)
        logger.info("made %d bytes of %s", len(image.data), image.media_type, extra={"stage": "decode"})
        return image

    async def encode(self, picture: Picture, height: int, width: int, deterministic: bool) -> EncodedPicture:
        """Encodes a picture, or its crop, in a size in pixels. Deterministic ones are encoded in a batch of
        their own. One that was encoded lately costs nothing."""
        key = (await asyncio.to_thread(_digest, picture, height, width), deterministic)
        if (known := self._encoded.use(key)) is not None:
            return known
        encoded = await self._encode(picture, height, width, deterministic)
        self._encoded.keep(key, encoded)
        logger.info("encoded a picture of %dx%d", width, height, extra={"stage": "encode"})
        return encoded

    async def enlarge(
        self, latents: torch.Tensor, latent_shape: LatentShape, upscaler: Upscaler, deterministic: bool
    ) -> EncodedPicture:
        """Latents [C, h, w] in another shape, to start from: either themselves, or their picture."""
        if upscaler == "latent":
            return await asyncio.to_thread(enlarged_latents, latents, latent_shape)
        pixels = await self._pixels(latents, deterministic)
        height, width = (self._vae.scale_factor * side for side in latent_shape)
        picture = await asyncio.to_thread(enlarged, pixels, height, width)
        return await self._encode(picture, height, width, deterministic)

    async def decode_isolated(
        self,
        latents: torch.Tensor,
        image_format: ImageFormat,
        metadata: Mapping[str, str],
        deterministic: bool,
        around: Picture | None = None,
    ) -> AsyncIterator[Turn | EncodedImage]:
        """Does `decode` alone and in its turn, for latents under which a replica died."""
        work = partial(self.decode, latents, image_format, metadata, True, around)
        async with aclosing(self._turns.isolated(work)) as events:
            async for event in events:
                yield event

    async def encode_isolated(
        self, picture: Picture, height: int, width: int, deterministic: bool
    ) -> AsyncIterator[Turn | EncodedPicture]:
        """Does `encode` alone and in its turn."""
        work = partial(self.encode, picture, height, width, True)
        async with aclosing(self._turns.isolated(work)) as events:
            async for event in events:
                yield event

    async def enlarge_isolated(
        self, latents: torch.Tensor, latent_shape: LatentShape, upscaler: Upscaler, deterministic: bool
    ) -> AsyncIterator[Turn | EncodedPicture]:
        """Does `enlarge` alone and in its turn."""
        work = partial(self.enlarge, latents, latent_shape, upscaler, True)
        async with aclosing(self._turns.isolated(work)) as events:
            async for event in events:
                yield event

    async def begin_turn(self, turn: Turn) -> None:
        self._turns.begin(turn)

    async def preview(self, latents: torch.Tensor, image_format: ImageFormat) -> EncodedImage:
        """Makes a rough picture of unfinished latents [C, h, w], in full size, without the VAE."""
        pixels = await asyncio.to_thread(self._vae.decoder.preview, latents)
        return await asyncio.to_thread(encode_image, pixels, image_format, {})

    async def cost(self) -> tuple[StageCost, StageCost]:
        """The cost of VAE decoding by images, and of encoding by pictures."""
        return self._decode_cost, self._encode_cost

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve for autoscaling."""
        return self._work.stats()

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        self._health.check()

    async def _pixels(self, latents: torch.Tensor, deterministic: bool) -> Pixels:
        return await self._made(self._decodings, self._decode_together, latents, deterministic)

    async def _encode(self, picture: Picture, height: int, width: int, deterministic: bool) -> EncodedPicture:
        prepared = await asyncio.to_thread(prepare_picture, picture, height, width)
        return await self._made(self._encodings, self._encode_together, prepared, deterministic)

    async def _made(
        self,
        batches: ShapedBatches[Item, Result],
        together: Callable[[Item], Awaitable[Result | StageError]],
        item: Item,
        deterministic: bool,
    ) -> Result:
        with self._work.of(batches.seconds_each(item, self._max_batch_size)):
            if deterministic:
                [result] = await self._run(batches, [item])
            else:
                result = await together(item)
            return self._health.check_result(result)

    @serve.batch  # type: ignore[untyped-decorator]
    async def _decode_together(self, latents: list[torch.Tensor]) -> list[Pixels | StageError]:
        return await self._run(self._decodings, latents)

    @serve.batch  # type: ignore[untyped-decorator]
    async def _encode_together(self, pictures: list[PreparedPicture]) -> list[EncodedPicture | StageError]:
        return await self._run(self._encodings, pictures)

    async def _run(
        self, batches: ShapedBatches[Item, Result], items: Sequence[Item]
    ) -> list[Result | StageError]:
        def watched() -> list[Result | StageError]:
            with self._health.watching():
                return batches.run(items)

        return await asyncio.get_running_loop().run_in_executor(self._executor, watched)

    def _shape_of_picture(self, picture: PreparedPicture) -> LatentShape:
        height, width = (side // self._vae.scale_factor for side in picture.pixels.shape[1:])
        return height, width


def _shape_of_latents(latents: torch.Tensor) -> LatentShape:
    return latents.shape[1], latents.shape[2]


def _digest(picture: Picture, height: int, width: int) -> bytes:
    """Tells pictures apart that would be encoded otherwise."""
    digest = hashlib.sha256(repr((picture.pixels.shape, picture.crop, height, width)).encode())
    digest.update(np.ascontiguousarray(picture.pixels).data)
    return digest.digest()
