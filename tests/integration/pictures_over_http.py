"""Jobs' pictures over HTTP, and denoisers that die meanwhile."""

import asyncio
import os
import signal
import time
from typing import Any

import httpx
import ray

TIMEOUT_S = 240.0


async def _finished(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        job: dict[str, Any] = (await http.get(f"/v1/predictions/{job_id}")).json()
        if job["status"] not in ("starting", "processing"):
            return job
        assert time.monotonic() < deadline, job
        await asyncio.sleep(0.5)


async def job_picture(http: httpx.AsyncClient, job_id: str) -> bytes:
    job = await _finished(http, job_id)
    assert job["status"] == "succeeded", job
    return (await http.get(job["output"][0])).content


def kill_a_denoiser(application: str) -> None:
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    actor = ray.get_actor(next(one for one in names if f"{application}#Denoiser#" in one), namespace="serve")
    os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
