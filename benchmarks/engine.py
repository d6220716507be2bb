"""The engine against diffusers' StableDiffusionPipeline: same model, same prompts, same batch, same run.

    python -m benchmarks.engine                     the embedded model on this machine
    python -m benchmarks.engine --json result.json  the figures with hardware and versions

Both go from prompts to pixels. They take turns, so that a machine whose speed drifts is fair to both; what
counts is the median of the ratios pair by pair, not the seconds.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from deployments.engine.cost import Curve, StageCost
from deployments.engine.denoising import Engine, EngineConfig
from deployments.engine.device_step import step_runner
from deployments.engine.images import LatentDecoder, Pixels
from deployments.engine.messages import DenoisedLatents, DenoiseRequest
from deployments.engine.models import (
    ModelSource,
    Placement,
    load_model_info,
    load_text_pipeline,
    load_unet,
    load_vae,
)
from deployments.engine.prompts import PromptText, TextEncoder
from deployments.engine.samplers import SamplerTables

PROMPTS = [
    "a large red star on a blue background",
    "a green circle left of a white square on a black background",
]
SAMPLER = "DPM++ 2M"
GUIDANCE_SCALE = 5.0


class Ours:
    """Encoder, engine and decoder in one process, without Ray."""

    def __init__(self, source: ModelSource, placement: Placement, max_images: int) -> None:
        info = load_model_info(source)
        self.size = info.default_height  # it is for square models
        self.encoder = TextEncoder(load_text_pipeline(source, placement))
        self.decoder = LatentDecoder(load_vae(source, placement))
        latents = self.size // info.scale_factor
        rows = 2 * max_images
        self.tables = SamplerTables(info.scheduler_config)
        unet = load_unet(source, placement)
        self.engine = Engine(
            unet,
            step_runner(unet, [(latents, latents)]),
            self.tables,
            info.scale_factor,
            EngineConfig(rows, rows, rows, (latents, latents), None).for_device(unet.device),
            StageCost((((latents, latents), Curve(0.01, 1, 0.0)),)),  # rows cost nothing: all share a forward
        )

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], num_inference_steps: int
    ) -> list[Pixels]:
        encoded = self.encoder.encode([*prompts, *([""] * len(prompts))])
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            text = PromptText(prompt, "", guided=True, deterministic=False)
            embeds = self.encoder.assemble(text, [encoded[index], encoded[index + len(prompts)]])
            self.engine.add(
                DenoiseRequest(
                    request_id=str(index),
                    embeds=embeds,
                    height=self.size,
                    width=self.size,
                    sampler=SAMPLER,
                    num_inference_steps=num_inference_steps,
                    guidance_scale=GUIDANCE_SCALE,
                    seed=seed,
                )
            )
        latents: dict[str, torch.Tensor] = {}
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the Denoiser
        while self.engine.num_requests:
            for event in self.engine.step().events:
                if isinstance(event, DenoisedLatents):
                    latents[event.request_id] = event.latents
        torch.set_num_threads(num_threads)
        return self.decoder.decode([latents[str(index)] for index in range(len(prompts))])


class Theirs:
    """diffusers' pipeline with the same scheduler."""

    def __init__(self, source: ModelSource, placement: Placement, ours: Ours) -> None:
        self.pipeline = DiffusionPipeline.from_pretrained(source.path, dtype=placement.torch_dtype())
        self.pipeline.to(placement.torch_device())
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.scheduler = ours.tables.scheduler(SAMPLER)
        self.size = ours.size

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], num_inference_steps: int) -> None:
        self.pipeline(
            list(prompts),
            height=self.size,
            width=self.size,
            num_inference_steps=num_inference_steps,
            guidance_scale=GUIDANCE_SCALE,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        )


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(ours: Ours, theirs: Theirs, batch_size: int, steps: int, repeats: int) -> dict[str, float]:
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(batch_size)]
    seeds = list(range(batch_size))
    pairs = []
    for repeat in range(repeats + 1):
        pair = (
            seconds(lambda: ours.generate(prompts, seeds, steps)),
            seconds(lambda: theirs.generate(prompts, seeds, steps)),
        )
        if repeat:  # the first warms up
            pairs.append(pair)
    return {
        "batch_size": batch_size,
        "engine_images_per_s": batch_size / statistics.median(mine for mine, _ in pairs),
        "pipeline_images_per_s": batch_size / statistics.median(other for _, other in pairs),
        "ratio": statistics.median(other / mine for mine, other in pairs),
    }


def hardware(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    versions = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"device": name, "threads": str(torch.get_num_threads()), **versions}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "models" / "shapes"))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source, placement = ModelSource(args.model), Placement(dtype=args.dtype)
    ours = Ours(source, placement, max(args.batch_sizes))
    theirs = Theirs(source, placement, ours)
    results = []
    print("| batch | engine, images/s | StableDiffusionPipeline, images/s | ratio |\n|---:|---:|---:|---:|")
    for batch_size in args.batch_sizes:
        result = compare(ours, theirs, batch_size, args.steps, args.repeats)
        results.append(result)
        print(
            f"| {batch_size} | {result['engine_images_per_s']:.2f} | {result['pipeline_images_per_s']:.2f} "
            f"| {result['ratio']:.2f} |",
            flush=True,
        )
    if args.json:
        about = {"date": datetime.now(UTC).date().isoformat(), **hardware(placement.torch_device())}
        args.json.write_text(json.dumps(about | {"steps": args.steps, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
