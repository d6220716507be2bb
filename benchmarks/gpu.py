"""Everything that only a GPU can show, in one run, with random weights of real size.

    python -m benchmarks.gpu --json benchmarks/results/NAME.json

It measures seconds per U-Net forward by rows, eager, captured and compiled, and their share of the device's
measured matrix peak; the engine against diffusers' pipeline at equal batch; VAE decoding alone and beside a
denoising process; and whether deterministic latents are bit-identical. Without CUDA the same code runs at
tiny sizes, whose figures mean nothing.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0, XFormersAttnProcessor
from torch import multiprocessing
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.random_models import RandomModel, build_vae
from deployments.engine.device_step import EagerSteps, StepRunner, step_runner, warm_up
from deployments.engine.messages import DenoisedLatents

ROWS = (1, 2, 4, 8, 16)
BATCH_SIZES = (1, 2, 4, 8)
STEPS = 20


class Bench:
    """Times work on one device. Every figure is the median of `repeats`, after a warm-up."""

    def __init__(self, device: torch.device, dtype: torch.dtype, repeats: int) -> None:
        self.device = device
        self.dtype = dtype
        self.repeats = repeats

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        work()
        self.synchronize()
        timings = []
        for _ in range(self.repeats):
            started = time.perf_counter()
            work()
            self.synchronize()
            timings.append(time.perf_counter() - started)
        return statistics.median(timings)

    def matrix_peak(self) -> float:
        """FLOP/s of a large matrix product on random data, the upper bound for any model."""
        side = 8192 if self.device.type == "cuda" else 512
        left, right = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * side**3 / self.seconds(lambda: left @ right)


def forwards(
    bench: Bench, model: RandomModel, run_step: StepRunner, peak: float, flops: int
) -> list[dict[str, float]]:
    """Seconds per step by rows, and its share of the matrix peak. flops: per row"""
    shape = (model.side, model.side)
    results = []
    for rows in sorted(ROWS, reverse=True):
        seconds = bench.seconds(lambda rows=rows: warm_up(model.unet.shape, run_step, shape, rows))  # type: ignore[misc]
        share = rows * flops / seconds / peak
        results.append({"rows": rows, "seconds": seconds, "share_of_peak": share})
        say(f"    {rows:>2} rows {1000 * seconds:8.2f} ms, {100 * share:5.1f}% of the matrix peak")
    return results


def curves(bench: Bench, family: str, peak: float) -> dict[str, Any]:
    """Measures every way to run a step. A way that cannot run here gives the reason instead of figures."""
    ways: dict[str, Callable[[], StepRunner]] = {}
    model = RandomModel.build(family, bench.device, bench.dtype)
    shapes = [(model.side, model.side)]
    # Counted before anything is compiled, because dynamo never compiles what it has seen under a counter.
    with FlopCounterMode(display=False) as counter:
        warm_up(model.unet.shape, EagerSteps(model.unet), shapes[0], 1)
    flops = counter.get_total_flops()

    def with_attention(processor: Any) -> StepRunner:
        model.module.set_attn_processor(processor)
        return step_runner(model.unet, shapes)

    def compiled() -> StepRunner:
        model.module.set_attn_processor(AttnProcessor2_0())
        model.module.compile(dynamic=False)
        return step_runner(model.unet, shapes)

    ways["eager, sdpa"] = lambda: EagerSteps(model.unet)
    ways["captured, sdpa"] = lambda: with_attention(AttnProcessor2_0())
    ways["captured, xformers"] = lambda: with_attention(XFormersAttnProcessor())
    ways["captured and compiled, sdpa"] = compiled
    results: dict[str, Any] = {}
    for name, way in ways.items():
        say(f"  {name}")
        try:
            results[name] = forwards(bench, model, way(), peak, flops)
        except (ImportError, NotImplementedError, RuntimeError) as error:
            results[name] = f"cannot run here: {' '.join(str(error).split())[:200]}"
            say(f"    {results[name]}")
    return results


def denoise(model: RandomModel, run_step: StepRunner, requests: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Latents by request id."""
    engine = model.engine(2 * max(BATCH_SIZES), run_step)
    for request in requests:
        engine.add(request)
    latents: dict[str, torch.Tensor] = {}
    while engine.num_requests:
        events = [event for event in engine.step().events if isinstance(event, DenoisedLatents)]
        latents |= {event.request_id: event.latents for event in events}
    return latents


def against_pipeline(bench: Bench, family: str, steps: int) -> list[dict[str, float]]:
    """Seconds per whole denoising: ours, and diffusers' eager and compiled pipeline's, at equal batch."""
    model = RandomModel.build(family, bench.device, bench.dtype)
    pipeline, run_step = model.pipeline(), step_runner(model.unet, [(model.side, model.side)])
    results = []
    for batch_size in BATCH_SIZES:
        requests = [model.request(str(seed), seed, steps) for seed in range(batch_size)]
        ours = bench.seconds(lambda: denoise(model, run_step, requests))  # noqa: B023 - called in this iteration only
        eager = bench.seconds(lambda: model.run_pipeline(pipeline, batch_size, steps))  # noqa: B023
        results.append({"batch_size": batch_size, "engine_s": ours, "eager_pipeline_s": eager})
    model.module.compile(dynamic=False)
    for result in results:
        batch_size = int(result["batch_size"])
        result["compiled_pipeline_s"] = bench.seconds(
            lambda: model.run_pipeline(pipeline, batch_size, steps)  # noqa: B023
        )
        say(
            f"    batch {batch_size}: {batch_size / result['engine_s']:.2f} images/s, "
            f"{result['eager_pipeline_s'] / result['engine_s']:.2f} times the eager pipeline, "
            f"{result['compiled_pipeline_s'] / result['engine_s']:.2f} times the compiled one"
        )
    return results


def _denoise_until(stop: Any, counted: Any, family: str, device: str, dtype: torch.dtype) -> None:
    """Runs in a separate process: counted U-Net steps of eight rows, until told to stop."""
    model = RandomModel.build(family, torch.device(device), dtype)
    run_step = step_runner(model.unet, [(model.side, model.side)])
    while not stop.is_set():
        warm_up(model.unet.shape, run_step, (model.side, model.side), 8)
        with counted.get_lock():
            counted.value += 1


def vae_beside_unet(bench: Bench, family: str, side: int) -> list[dict[str, float]]:
    """Seconds of VAE decoding by batch size, alone and beside a process, and that process's slowdown."""
    vae = build_vae(family, bench.device, bench.dtype)
    batches = {
        size: torch.randn(size, 4, side, side, device=bench.device, dtype=bench.dtype) for size in BATCH_SIZES
    }

    def decode(size: int) -> Any:
        with torch.inference_mode():
            return vae.decode(batches[size], return_dict=False)[0]

    alone = {size: bench.seconds(lambda size=size: decode(size)) for size in BATCH_SIZES}  # type: ignore[misc]
    context = multiprocessing.get_context("spawn")
    stop, counted = context.Event(), context.Value("q", 0)
    process = context.Process(
        target=_denoise_until, args=(stop, counted, family, str(bench.device), bench.dtype)
    )
    process.start()
    results = []
    try:
        while counted.value < 10:
            if not process.is_alive():
                raise RuntimeError(f"the process beside has ended with {process.exitcode}")
            time.sleep(0.1)
        undisturbed = _rate(counted, lambda: time.sleep(2.0))
        for size in BATCH_SIZES:
            beside = 0.0

            def work(size: int = size) -> None:
                nonlocal beside
                beside = bench.seconds(lambda: decode(size))

            disturbed = _rate(counted, work)
            results.append(
                {
                    "batch_size": size,
                    "alone_s": alone[size],
                    "beside_s": beside,
                    "unet_steps_lost": 1 - disturbed / undisturbed,
                }
            )
            say(
                f"    batch {size}: {1000 * alone[size]:.1f} ms alone, {1000 * beside:.1f} ms beside a U-Net "
                f"that loses {100 * results[-1]['unet_steps_lost']:.0f}% of its steps meanwhile"
            )
    finally:
        stop.set()
        process.join()
    return results


def _rate(counted: Any, work: Callable[[], object]) -> float:
    """Counts per second while `work` runs."""
    before, started = counted.value, time.perf_counter()
    work()
    return float((counted.value - before) / (time.perf_counter() - started))


def fingerprints(family: str, device: str, dtype: torch.dtype, steps: int) -> list[str]:
    """Digests of one deterministic request's latents, at every slot, each time among other neighbours."""
    model = RandomModel.build(family, torch.device(device), dtype)
    run_step = step_runner(model.unet, [(model.side, model.side)])
    found = []
    for slot in range(4):
        requests = [
            model.request("wanted" if place == slot else str(place), seed, steps, deterministic=True)
            for place in range(4)
            for seed in [7 if place == slot else 100 + 10 * slot + place]
        ]
        latents = denoise(model, run_step, requests)["wanted"]
        found.append(hashlib.sha256(latents.numpy().tobytes()).hexdigest()[:16])
    return found


def determinism(bench: Bench, family: str, steps: int) -> dict[str, Any]:
    """Whether the fingerprints are all the same, here and in a second process."""
    arguments = (family, str(bench.device), bench.dtype, steps)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = [fingerprints(*arguments), pool.apply(fingerprints, arguments)]
    same = len({one for part in found for one in part}) == 1
    say(f"    {'the same bits' if same else 'DIFFERENT bits'} at 4 slots in 2 processes")
    return {"same_bits": same, "fingerprints": found}


def environment(device: torch.device) -> dict[str, str]:
    versions = {}
    for name in ("torch", "diffusers", "transformers", "xformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (tiny sizes: no figures)"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": name,
        "cuda": torch.version.cuda or "none",
        "python": sys.version.split()[0],
        **versions,
    }


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", choices=["sd15", "sdxl", "tiny"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    on_cuda = torch.cuda.is_available()
    bench = Bench(
        torch.device("cuda" if on_cuda else "cpu"),
        torch.bfloat16 if on_cuda else torch.float32,
        args.repeats,
    )
    torch._dynamo.config.recompile_limit = 256  # one per row count; past it dynamo silently runs eagerly
    results: dict[str, Any] = environment(bench.device) | {"dtype": str(bench.dtype).removeprefix("torch.")}
    say(json.dumps(results))
    peak = bench.matrix_peak()
    results["matrix_peak_tflops"] = peak / 1e12
    say(f"matrix peak {peak / 1e12:.1f} TFLOP/s")
    for family in args.families or (["sd15", "sdxl"] if on_cuda else ["tiny"]):
        parts: dict[str, Callable[[], Any]] = {
            "determinism": lambda: determinism(bench, family, args.steps),  # noqa: B023
            "curves": lambda: curves(bench, family, peak),  # noqa: B023
            "against_pipeline": lambda: against_pipeline(bench, family, args.steps),  # noqa: B023
            "vae": lambda: vae_beside_unet(bench, family, 128 if family == "sdxl" else 64),  # noqa: B023
        }
        results[family] = {}
        for name, part in parts.items():
            say(f"{family}: {name.replace('_', ' ')}")
            torch._dynamo.reset()
            results[family][name] = part()
            if args.json:  # after every part, so that a later failure loses nothing
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
