"""One diffusers pipeline behind Ray Serve, one call per request, from Ray's Stable Diffusion tutorial."""

from collections.abc import Sequence

from PIL import Image
from ray import serve
from ray.serve import Application

from benchmarks.peers.diffusers_pipeline import PipelineThread
from benchmarks.peers.images_api import ImageRequest
from benchmarks.peers.ray_ingress import MAX_ONGOING_REQUESTS, APIIngress


@serve.deployment(max_ongoing_requests=MAX_ONGOING_REQUESTS)
class StableDiffusion:
    def __init__(self) -> None:
        self._thread = PipelineThread()

    async def generate(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        return await self._thread.generate(requests)


def build_app(num_threads: int) -> Application:
    return APIIngress.bind(StableDiffusion.options(num_replicas=num_threads).bind())
