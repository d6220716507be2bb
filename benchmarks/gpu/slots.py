"""Another model's weights in a U-Net's memory: how long that takes, and what captured steps then compute."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.gpu.checks import difference
from benchmarks.random_models import RandomModel
from deployments.engine.device_step import EagerSteps
from deployments.engine.model_source import ModelRef, ModelSource, Placement
from deployments.engine.transfers import pinned
from deployments.engine.unet_loader import DeviceLoader

_STEPS = 4


def figures(bench: Bench, family: str) -> Figures:
    """Files were written just before they are read, so they are in the system's memory too."""
    model, other = (
        RandomModel.build(bench.sized(family), bench.device, bench.dtype, seed=seed) for seed in range(2)
    )
    requests = [model.request(str(seed), seed, _STEPS) for seed in range(4)]
    run_step = model.step_runner()
    model.denoise(requests, run_step)  # captures
    expected = other.denoise(requests, EagerSteps(other.unet))
    other.module.to("cpu")
    first_s, again_s = (bench.once(lambda: model.unet.take(other.module)) for _ in range(2))
    yield "from pageable memory", {"seconds": again_s, "first_s": first_s}
    yield "captured steps after a load", difference(model.denoise(requests, run_step), expected)
    if bench.is_cuda:
        for parameter in other.module.parameters():
            parameter.data = pinned(parameter.data)
        yield "from pinned memory", {"seconds": bench.once(lambda: model.unet.take(other.module))}
    with TemporaryDirectory() as folder:
        source = _saved(other, Path(folder))
        ref = ModelRef(source, digest="", text="", unet="other", vae="")
        placement = Placement(bench.device.type, str(bench.dtype).removeprefix("torch."))
        loader = DeviceLoader(placement, [model.shape], torch.get_num_threads())
        loaded = []
        seconds = bench.once(lambda: loaded.append(loader.load(ref, run_step)))
        yield "from a file", {"seconds": seconds, "same_memory": loaded == [run_step]}


def _saved(model: RandomModel, folder: Path) -> ModelSource:
    """A folder in diffusers format with only the U-Net."""
    model.module.save_pretrained(folder / "unet")
    pipeline = StableDiffusionXLPipeline if model.unet.shape.pooled_width else StableDiffusionPipeline
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline.__name__}))
    return ModelSource(str(folder))
