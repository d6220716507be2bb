"""What loading a model costs the batch that runs beside it, and what a model's first picture waits for.

    python -m benchmarks.loading                  on this machine's CPU, with the embedded model
    python -m benchmarks.loading --output FILE    also writes the figures

Forwards alone and forwards beside loads that never stop take turns in one run, so that a change of the
machine hits both.
"""

import argparse
import json
import statistics
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import torch

from deployments.engine.cost import Curve, StageCost
from deployments.engine.device_step import StepRunner
from deployments.engine.engine import Engine
from deployments.engine.engine_config import EngineConfig
from deployments.engine.fingerprint import model_ref
from deployments.engine.forward_costs import ForwardCosts
from deployments.engine.messages import DenoisedLatents, DenoiseRequest
from deployments.engine.model_pool import ModelPool
from deployments.engine.model_source import ModelRef, ModelSource, Placement
from deployments.engine.models import load_text_pipeline
from deployments.engine.prompt_text import PromptText
from deployments.engine.prompts import TextEncoder
from deployments.engine.stage_errors import sound
from deployments.engine.unet_loader import DeviceLoader, loading_thread

_SHAPE = (16, 16)
_STEPS = 20
_ROUNDS = 8


class Bench:
    """An engine of two models of one architecture, with room for both."""

    def __init__(self, path: str, num_threads: int) -> None:
        self.source, self.placement = ModelSource(path), Placement("cpu")
        self.first = model_ref(self.source)
        self.second = replace(self.first, unet="the same weights by another name")
        self.loader = DeviceLoader(self.placement, (), num_threads)
        began = time.perf_counter()
        run_step = self.loader.load(self.first, None)
        self.load_s = time.perf_counter() - began
        torch.set_num_threads(1)
        cost = StageCost(((_SHAPE, Curve(0.01, 1, 0.0)),))
        self.thread = loading_thread(self.placement)
        costs = ForwardCosts(cost, self.first)
        self.pool = ModelPool(
            self.loader, costs.of, 2, self.thread, lambda: None, (self.first, run_step), self.load_s
        )
        for model in (self.first, self.second):
            self.pool.know(model)
        self.engine = Engine(self.pool, EngineConfig(16, 16, 8, _SHAPE))
        encoder = TextEncoder(load_text_pipeline(self.source, self.placement))
        text = PromptText("a red star on a blue background", "", guided=True, deterministic=False)
        self.embeds = encoder.assemble(text, sound(encoder.encode(encoder.texts(text))))

    def add(self, name: str, model: ModelRef) -> None:
        self.engine.add(
            DenoiseRequest(
                request_id=name,
                embeds=self.embeds,
                model=model.unet,
                height=128,
                width=128,
                latent_shape=_SHAPE,
                sampler="DPM++ 2M",
                num_inference_steps=_STEPS,
                num_calls=_STEPS,
                guidance_scale=5.0,
                seed=1,
            )
        )

    def forwards_s(self, prefix: str, model: ModelRef) -> list[float]:
        """Seconds of forwards of eight images."""
        for index in range(8):
            self.add(f"{prefix}{index}", model)
        found = []
        while self.engine.num_requests:
            report = self.engine.step()
            if report.forward is not None:
                found.append(report.forward.seconds)
        return found

    def load_until(self, stop: threading.Event, spare: StepRunner) -> Future[list[float]]:
        """Loads the second model again and again. Seconds of each load that ended before the stop"""

        def load() -> list[float]:
            loads_s = []
            while not stop.is_set():
                began = time.perf_counter()
                self.loader.load(self.second, spare)
                loads_s.append(time.perf_counter() - began)
            return loads_s[:-1]

        return self.thread.submit(load)

    def first_picture_s(self) -> float:
        """Seconds from the request for a model that is not there to its latents."""
        began = time.perf_counter()
        self.add("cold", self.second)
        while True:
            self.engine.arrange()
            if self.engine.due_in_s is None:
                time.sleep(0.001)
            elif any(isinstance(event, DenoisedLatents) for event in self.engine.step().events):
                return time.perf_counter() - began


def measure(bench: Bench) -> dict[str, float]:
    bench.forwards_s("warm-up", bench.first)
    alone, beside, loads_s = [], [], []
    spare = bench.loader.load(bench.second, None)
    for number in range(_ROUNDS):
        alone += bench.forwards_s(f"alone{number}-", bench.first)
        stop = threading.Event()
        loading = bench.load_until(stop, spare)
        beside += bench.forwards_s(f"beside{number}-", bench.first)
        stop.set()
        loads_s += loading.result()
    cold_s = bench.first_picture_s()
    began = time.perf_counter()
    bench.add("warm", bench.second)
    while bench.engine.num_requests:
        bench.engine.step()
    warm_s = time.perf_counter() - began
    return {
        "forward_alone_ms": round(1000 * statistics.mean(alone), 2),
        "forward_beside_loads_ms": round(1000 * statistics.mean(beside), 2),
        "beside_loads_to_alone": round(statistics.mean(beside) / statistics.mean(alone), 3),
        "loads_ended_meanwhile": len(loads_s),
        "load_beside_forwards_s": round(statistics.median(loads_s), 3),
        "load_s": round(bench.pool.usual_load_s, 3),
        "first_picture_of_a_model_that_is_not_there_s": round(cold_s, 3),
        "picture_of_a_model_that_is_there_s": round(warm_s, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "models" / "shapes"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures = measure(Bench(args.model, args.threads))
    print(json.dumps(figures, indent=2))
    if args.output:
        args.output.write_text(
            json.dumps({"device": "CPU", "threads": args.threads} | figures, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
