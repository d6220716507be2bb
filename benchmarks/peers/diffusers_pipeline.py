"""diffusers' own pipeline around the embedded model: what every peer serves, with a process per core.

Each process computes with one thread. With one process on two cores, OpenMP's threads wait for each other
hundreds of times in a forward, and a server that needs one of the cores holds up both: at 80% of its capacity
`@serve.batch` then took 1.8 times as long on average. A simulated device has one process.
"""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from benchmarks.peers.images_api import ImageRequest, Settings
from benchmarks.peers.simulated_device import COST_MODEL_VARIABLE, SimulatedPipeline

MODEL = Path(__file__).parents[2] / "models" / "shapes"  # its scheduler is DPMSolverMultistep, "DPM++ 2M"
# In a simulation of the benchmark's mix, 16 has 5% more throughput than 8 at no more latency.
MAX_IMAGES_PER_CALL = 16
_WARM_UP_SIZES = (1, 2, 4, 8, 16)


class DiffusersPipeline:
    """Calls of a loaded and warm pipeline. It belongs to the thread that builds it."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # overrides what a framework has set in the environment
        self._pipeline = StableDiffusionPipeline.from_pretrained(MODEL, dtype=torch.float32)
        self._pipeline.set_progress_bar_config(disable=True)
        for size in _WARM_UP_SIZES:
            self([ImageRequest("a red star", "", seed, Settings(2, 5.0, None, None)) for seed in range(size)])

    def __call__(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        """Takes requests with equal settings."""
        settings = requests[0].settings
        return self._pipeline(
            [request.prompt for request in requests],
            negative_prompt=[request.negative_prompt for request in requests],
            generator=[torch.Generator().manual_seed(request.seed) for request in requests],
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            width=settings.width,
            height=settings.height,
        ).images


class GroupedCalls:
    """Turns any requests into calls of a pipeline, which takes requests with equal settings."""

    def __init__(self) -> None:
        simulated = os.environ.get(COST_MODEL_VARIABLE)
        self._call = SimulatedPipeline(Path(simulated)) if simulated else DiffusersPipeline()

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        """Images in the order of the requests. Requests with equal settings share a call."""
        groups: dict[Settings, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(request.settings, []).append(index)
        images: dict[int, Image.Image] = {}
        for group in groups.values():
            for start in range(0, len(group), MAX_IMAGES_PER_CALL):
                indices = group[start : start + MAX_IMAGES_PER_CALL]
                made = self._call([requests[index] for index in indices])
                images.update(zip(indices, made, strict=True))
        return [images[index] for index in range(len(requests))]


class PipelineThread:
    """A pipeline on its own thread, for servers on an event loop; one call at a time."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "pipeline")
        self._calls = self._executor.submit(GroupedCalls).result()

    async def generate(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._calls.generate, requests)
