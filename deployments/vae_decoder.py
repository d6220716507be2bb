"""The decoding stage: makes picture files and previews of latents, and latents of pictures to start from."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch

from deployments.cost_measurement import CostMeasurement
from deployments.device_memory import image_room
from deployments.devices import Vae, vae
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
from deployments.engine.model_source import ModelRef, Placement
from deployments.engine.pictures import (
    PreparedPicture,
    enlarged,
    enlarged_latents,
    laid_around,
    prepare_picture,
)
from deployments.engine.stage_errors import StageError
from deployments.engine.unet_loader import loading_thread
from deployments.forwards import Forwards
from deployments.gathered import Gathered
from deployments.health import Health
from deployments.isolation import Turn, Turns
from deployments.recent import Recent
from deployments.shaped_batches import ShapedBatches
from deployments.shelf import Shelf
from deployments.work import Work

logger = logging.getLogger("ray.serve")
Item = TypeVar("Item")
Result = TypeVar("Result")

_KEPT_PICTURES = 64  # encoded ones, of a megabyte at most in usual sizes


class VaeDecoder:
    """Serves VAEs, in both directions.

    model: the one whose VAE is there from the start; num_models: how many VAEs are kept loaded
    max_batch_size: most images, or pictures, in a call; num_threads: torch threads of this replica
    gpu_share: this replica's part of a GPU's memory, which limits them too, by their size; None for no limit
    max_hold_s: longest call in seconds; larger batches are split, since others may share the device
    """

    def __init__(
        self,
        model: ModelRef,
        placement: Placement,
        max_batch_size: int,
        num_threads: int,
        num_models: int,
        gpu_share: float | None,
        max_hold_s: float,
        measurement: CostMeasurement,
    ) -> None:
        # One thread, so that the VAE's memory on the device is needed only once.
        self._executor = ThreadPoolExecutor(1, "vae-decoder", torch.set_num_threads, (num_threads,))

        def load(one: ModelRef) -> Vae:
            return vae(one.source, placement, measurement.known)

        room = image_room(model.source, placement, gpu_share, max_batch_size, num_models)
        loaded = (model, first := load(model))
        loading, self._health = loading_thread(placement), Health()
        self._vaes = Shelf(load, lambda one: one.vae, num_models, loading, loaded, self._health.lost)
        self._turns = Turns()
        self._work = Work()
        self._max_batch_size = max_batch_size
        most = min(map(room.images, measurement.shapes))
        self._encoded: Recent[tuple[str, bytes, bool], EncodedPicture] = Recent(_KEPT_PICTURES)
        # On the thread that will decode, because torch's number of threads is set per thread.
        submit, forwards = self._executor.submit, Forwards()
        self._decode_cost = submit(measurement.decode_cost, first.decoder.warm_up, most).result()
        self._encode_cost = submit(measurement.encode_picture_cost, first.encoder.warm_up, most).result()
        decodings: ShapedBatches[Vae, torch.Tensor, Pixels] = ShapedBatches(
            lambda one, latents: one.decoder.decode(latents),
            _shape_of_latents,
            self._decode_cost,
            max_hold_s,
            Fitting("images", self._health.halved),
            forwards,
            room.images,
        )
        encodings: ShapedBatches[Vae, PreparedPicture, EncodedPicture] = ShapedBatches(
            lambda one, pictures: one.encoder.encode(pictures),
            _shape_of_picture,
            self._encode_cost,
            max_hold_s,
            Fitting("pictures", self._health.halved),
            forwards,
            room.images,
        )
        self._decodings, self._encodings = self._direction(decodings), self._direction(encodings)

    async def decode(
        self,
        model: ModelRef,
        latents: torch.Tensor,
        image_format: ImageFormat,
        metadata: Mapping[str, str],
        deterministic: bool,
        around: Picture | None = None,
    ) -> EncodedImage:
        """latents: [C, h, w], scaled. Deterministic latents are decoded in a batch of their own.

        around: a picture with a mask; what the mask keeps is laid around the result
        """
        async with self._vaes.part(model) as one:
            pixels = await self._pixels(one, latents, deterministic)

        def written() -> EncodedImage:
            whole = pixels if around is None else laid_around(pixels, around)
            return encode_image(whole, image_format, metadata)

        image = await asyncio.to_thread(written)
        logger.info("made %d bytes of %s", len(image.data), image.media_type, extra={"stage": "decode"})
        return image

    async def encode(
        self, model: ModelRef, picture: Picture, height: int, width: int, deterministic: bool
    ) -> EncodedPicture:
        """Encodes a picture, or its crop, in a size in pixels. Deterministic ones are encoded in a batch of
        their own. One that was encoded lately costs nothing."""
        digest = await asyncio.to_thread(_digest, picture, height, width)
        key = (model.vae, digest, deterministic)
        if (known := self._encoded.use(key)) is not None:
            return known
        async with self._vaes.part(model) as one:
            encoded = await self._encode(one, picture, height, width, deterministic)
        self._encoded.keep(key, encoded)
        logger.info("encoded a picture of %dx%d", width, height, extra={"stage": "encode"})
        return encoded

    async def enlarge(
        self,
        model: ModelRef,
        latents: torch.Tensor,
        latent_shape: LatentShape,
        upscaler: Upscaler,
        deterministic: bool,
    ) -> EncodedPicture:
        """Latents [C, h, w] in another shape, to start from: either themselves, or their picture."""
        if upscaler == "latent":
            return await asyncio.to_thread(enlarged_latents, latents, latent_shape)
        async with self._vaes.part(model) as one:
            pixels = await self._pixels(one, latents, deterministic)
            height, width = (one.scale_factor * side for side in latent_shape)
            picture = await asyncio.to_thread(enlarged, pixels, height, width)
            return await self._encode(one, picture, height, width, deterministic)

    async def decode_isolated(
        self,
        model: ModelRef,
        latents: torch.Tensor,
        image_format: ImageFormat,
        metadata: Mapping[str, str],
        deterministic: bool,
        around: Picture | None = None,
    ) -> AsyncIterator[Turn | EncodedImage]:
        """Does `decode` alone and in its turn, for latents under which a replica died."""
        work = partial(self.decode, model, latents, image_format, metadata, True, around)
        async with aclosing(self._turns.isolated(work)) as events:
            async for event in events:
                yield event

    async def encode_isolated(
        self, model: ModelRef, picture: Picture, height: int, width: int, deterministic: bool
    ) -> AsyncIterator[Turn | EncodedPicture]:
        """Does `encode` alone and in its turn."""
        work = partial(self.encode, model, picture, height, width, True)
        async with aclosing(self._turns.isolated(work)) as events:
            async for event in events:
                yield event

    async def enlarge_isolated(
        self,
        model: ModelRef,
        latents: torch.Tensor,
        latent_shape: LatentShape,
        upscaler: Upscaler,
        deterministic: bool,
    ) -> AsyncIterator[Turn | EncodedPicture]:
        """Does `enlarge` alone and in its turn."""
        work = partial(self.enlarge, model, latents, latent_shape, upscaler, True)
        async with aclosing(self._turns.isolated(work)) as events:
            async for event in events:
                yield event

    async def begin_turn(self, turn: Turn) -> None:
        self._turns.begin(turn)

    async def preview(
        self, model: ModelRef, latents: torch.Tensor, image_format: ImageFormat
    ) -> EncodedImage:
        """Makes a rough picture of unfinished latents [C, h, w], in full size, by a map fitted to the VAE."""
        async with self._vaes.part(model) as one:
            pixels = await asyncio.to_thread(one.decoder.preview, latents)
        return await asyncio.to_thread(encode_image, pixels, image_format, {})

    async def cost(self, _: ModelRef) -> tuple[StageCost, StageCost]:
        """The cost of VAE decoding by images, and of encoding by pictures. All families' VAEs are of one
        architecture, so other models' cost the same."""
        return self._decode_cost, self._encode_cost

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve for autoscaling."""
        return self._work.stats()

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        self._health.check()

    async def _pixels(self, one: Vae, latents: torch.Tensor, deterministic: bool) -> Pixels:
        return await self._made(self._decodings, one, latents, deterministic)

    async def _encode(
        self, one: Vae, picture: Picture, height: int, width: int, deterministic: bool
    ) -> EncodedPicture:
        prepared = await asyncio.to_thread(prepare_picture, picture, height, width)
        return await self._made(self._encodings, one, prepared, deterministic)

    async def _made(
        self, direction: "_Direction[Item, Result]", one: Vae, item: Item, deterministic: bool
    ) -> Result:
        with self._work.of(direction.batches.seconds_each(one, item, self._max_batch_size)):
            if deterministic:
                made = self._executor.submit(lambda: self._run(direction.batches, [(one, item)])[0])
            else:
                made = direction.gathered.add((one, item))
            return self._health.check_result(await asyncio.wrap_future(made))

    def _direction(self, batches: ShapedBatches[Vae, Item, Result]) -> "_Direction[Item, Result]":
        run = partial(self._run, batches)
        return _Direction(batches, Gathered(self._executor, run, self._max_batch_size))

    def _run(
        self, batches: ShapedBatches[Vae, Item, Result], items: Sequence[tuple[Vae, Item]]
    ) -> list[Result | StageError]:
        """Called on the thread."""
        with self._health.watching():
            return batches.run(items)


@dataclass(frozen=True, slots=True)
class _Direction(Generic[Item, Result]):
    """Calls of VAEs in one direction, and what waits for them."""

    batches: ShapedBatches[Vae, Item, Result]
    gathered: Gathered[tuple[Vae, Item], Result | StageError]


def _shape_of_picture(one: Vae, picture: PreparedPicture) -> LatentShape:
    height, width = (side // one.scale_factor for side in picture.pixels.shape[1:])
    return height, width


def _shape_of_latents(_: Vae, latents: torch.Tensor) -> LatentShape:
    return latents.shape[1], latents.shape[2]


def _digest(picture: Picture, height: int, width: int) -> bytes:
    """Tells pictures apart that would be encoded otherwise."""
    digest = hashlib.sha256(repr((picture.pixels.shape, picture.crop, height, width)).encode())
    digest.update(np.ascontiguousarray(picture.pixels).data)
    return digest.digest()
