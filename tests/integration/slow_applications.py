"""Small applications for tests of `midstep run`: `front` takes its time, `failing` never starts."""

import asyncio

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

SECONDS = 6.0
REASON = "there is no such disk"


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Back:
    """A deployment without work until the front needs it."""

    def __call__(self) -> str:
        return "finished"


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Front:
    def __init__(self, back: DeploymentHandle) -> None:
        self._back = back

    async def __call__(self, request: Request) -> str:
        if request.url.path == "/slow":
            await asyncio.sleep(SECONDS)
        return str(await self._back.remote())


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Failing:
    def __init__(self) -> None:
        raise RuntimeError(REASON)


front = Front.bind(Back.bind())
failing = Failing.bind()
