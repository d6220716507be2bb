"""BentoML with adaptive batching, as it documents for clients that send one item each.

`Images` has the HTTP API. `StableDiffusion`, a service on which it depends, collects requests into batches. A
batch is answered when the last of its groups is done; its size is the same as for LitServe. BentoML refuses
requests that it expects to take longer than max_latency_ms. Since the other servers refuse nobody, this is
set to an hour. `Images` renews its connection to `StableDiffusion` after a hundred requests or five minutes,
which fails running requests, so here it never does.

    PEER_THREADS=2 bentoml serve benchmarks.peers.bentoml_service:Images --port 8001
"""

import os
from typing import Any

import bentoml

from benchmarks.peers.diffusers_pipeline import PipelineThread
from benchmarks.peers.images_api import PATH, ImageRequest, answer, png, read_body

MAX_BATCH_SIZE = 32
MAX_LATENCY_S = 3600
_TRAFFIC = {"timeout": MAX_LATENCY_S}
_CONNECTION = {"max_requests": 1_000_000, "max_age": 24.0 * 3600}


# A service takes no arguments, so they come from the environment.
@bentoml.service(
    workers=int(os.environ.get("PEER_THREADS", "2")), traffic=_TRAFFIC, runner_connection=_CONNECTION
)
class StableDiffusion:
    def __init__(self) -> None:
        self._thread = PipelineThread()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=1000 * MAX_LATENCY_S)
    async def generate(self, requests: list[ImageRequest]) -> list[str]:
        return [png(image) for image in await self._thread.generate(requests)]


@bentoml.service(workers=1, traffic=_TRAFFIC)
class Images:
    stable_diffusion = bentoml.depends(StableDiffusion)

    @bentoml.api(route=PATH)
    async def generate(self, body: dict[str, Any], /) -> dict[str, Any]:
        return answer(await self.stable_diffusion.to_async.generate(requests=read_body(body)))
