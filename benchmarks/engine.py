"""The engine against diffusers' StableDiffusionPipeline: same model, same prompts, same batch, same run.

    python -m benchmarks.engine                     the embedded model on this machine
    python -m benchmarks.engine --json result.json  the figures with hardware and versions

Both go from prompts to pixels. They take turns, so that a drifting machine speed is fair to both. The result
is the median of the ratios of pairs, not the seconds.
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

from deployments.engine import load_engine
from deployments.engine.images import Pixels
from deployments.engine.local_engine import LocalEngine
from deployments.engine.model_source import Placement

PROMPTS = [
    "a large red star on a blue background",
    "a green circle left of a white square on a black background",
]
SAMPLER = "DPM++ 2M"
GUIDANCE_SCALE = 5.0


def generate(ours: LocalEngine, prompts: Sequence[str], num_inference_steps: int) -> list[Pixels]:
    """Pictures with the seeds 0, 1, ..."""
    ours.add(
        *prompts,
        negative_prompt="",
        num_inference_steps=num_inference_steps,
        guidance_scale=GUIDANCE_SCALE,
        sampler=SAMPLER,
    )
    return ours.finish()


class Theirs:
    """diffusers' pipeline with the same scheduler."""

    def __init__(self, path: str, placement: Placement, ours: LocalEngine) -> None:
        self.pipeline = DiffusionPipeline.from_pretrained(path, dtype=placement.torch_dtype())
        self.pipeline.to(placement.torch_device())
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.scheduler = ours.tables.scheduler(SAMPLER)
        self.height, self.width = ours.height, ours.width

    def generate(self, prompts: Sequence[str], num_inference_steps: int) -> None:
        self.pipeline(
            list(prompts),
            height=self.height,
            width=self.width,
            num_inference_steps=num_inference_steps,
            guidance_scale=GUIDANCE_SCALE,
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
            output_type="np",
        )


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(ours: LocalEngine, theirs: Theirs, batch_size: int, steps: int, repeats: int) -> dict[str, float]:
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(batch_size)]
    pairs = []
    for repeat in range(repeats + 1):
        pair = (
            seconds(lambda: generate(ours, prompts, steps)),
            seconds(lambda: theirs.generate(prompts, steps)),
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
    placement = Placement(dtype=args.dtype)
    ours = load_engine(args.model, dtype=args.dtype, max_images=max(args.batch_sizes))
    theirs = Theirs(args.model, placement, ours)
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
