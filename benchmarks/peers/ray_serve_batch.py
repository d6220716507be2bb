"""`@serve.batch` over the whole pipeline: the best static batching that Ray Serve offers.

`@serve.batch` alone forms its batches eagerly. A batch is closed when the wait runs out and then parked until
the one before it is done. So it does not grow meanwhile, and most batches have one request. Therefore many
batches may be here at once, closed without any wait, and the handler merges them: it groups waiting requests
by settings, and when a call ends the largest group goes next, the oldest in a tie. In a simulation of the
benchmark's mix, largest first has lower mean and 95th percentile latencies than oldest first, and more so at
higher load.
"""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image
from ray import serve
from ray.serve import Application

from benchmarks.peers.diffusers_pipeline import MAX_IMAGES_PER_CALL, PipelineThread
from benchmarks.peers.images_api import ImageRequest
from benchmarks.peers.ray_ingress import MAX_ONGOING_REQUESTS, APIIngress

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request and the future of its image."""

    request: ImageRequest
    image: "asyncio.Future[Image.Image]"


def next_group(waiting: Sequence[Item], settings: Callable[[Item], Hashable]) -> list[Item]:
    """The largest group with equal settings that fits into a call; in a tie the oldest group."""
    groups: dict[Hashable, list[Item]] = {}
    for item in waiting:
        groups.setdefault(settings(item), []).append(item)
    return max((group[:MAX_IMAGES_PER_CALL] for group in groups.values()), key=len)


@serve.deployment(max_ongoing_requests=MAX_ONGOING_REQUESTS)
class StableDiffusion:
    def __init__(self) -> None:
        self._thread = PipelineThread()
        self._waiting: list[Waiting] = []
        self._running: asyncio.Task[None] | None = None

    async def generate(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        return await asyncio.gather(*(self._generate(request) for request in requests))

    @serve.batch(
        max_batch_size=MAX_IMAGES_PER_CALL,
        batch_wait_timeout_s=0.0,
        max_concurrent_batches=MAX_ONGOING_REQUESTS // MAX_IMAGES_PER_CALL,
    )
    async def _generate(self, requests: list[ImageRequest]) -> list[Image.Image]:
        loop = asyncio.get_running_loop()
        newcomers = [Waiting(request, loop.create_future()) for request in requests]
        self._waiting += newcomers
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._run())
        return await asyncio.gather(*(item.image for item in newcomers))

    async def _run(self) -> None:
        while self._waiting:
            group = next_group(self._waiting, lambda item: item.request.settings)
            self._waiting = [item for item in self._waiting if item not in group]
            try:
                images = await self._thread.generate([item.request for item in group])
            except Exception as error:  # the boundary of the loop: every error reaches its requests
                for item in group:
                    item.image.set_exception(error)
                continue
            for item, image in zip(group, images, strict=True):
                item.image.set_result(image)


def build_app(num_threads: int) -> Application:
    return APIIngress.bind(StableDiffusion.options(num_replicas=num_threads).bind())
