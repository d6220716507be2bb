"""The HTTP side of both Ray Serve peers, taken from Ray's Stable Diffusion tutorial."""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.peers.images_api import PATH, answer, png, read_body

MAX_ONGOING_REQUESTS = 4096  # every request reaches the replica at once and can be batched

api = FastAPI()


@serve.deployment(num_replicas=1, max_ongoing_requests=MAX_ONGOING_REQUESTS)
@serve.ingress(api)
class APIIngress:
    def __init__(self, diffusion_model: DeploymentHandle) -> None:
        self._diffusion_model = diffusion_model

    @api.post(PATH)
    async def generate(self, body: dict[str, Any]) -> JSONResponse:
        images = await self._diffusion_model.generate.remote(read_body(body))
        return JSONResponse(answer(map(png, images)))
