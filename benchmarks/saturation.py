"""The cost of serving at saturation: the whole application's images per second against the bare engine's.

    python -m benchmarks.saturation                  the embedded model
    python -m benchmarks.saturation --simulated      a device that only sleeps, so every loss is ours

The same requests, all there from the start, run at the same row cap in turns: over HTTP through every stage
with a denoiser per core, and through as many engines without Ray, in a process each. The bare engines also
decode, except with the simulated device, where each stage of the server has its own. The server idles
meanwhile.
"""

import argparse
import asyncio
import multiprocessing
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import torch
from ray.serve import Application

from benchmarks.engine import GUIDANCE_SCALE, PROMPTS, SAMPLER, seconds
from benchmarks.peers.systems import PROXIES, midstep, running
from cluster.bench.load import Target, run_load
from cluster.bench.mix import Mix, PlannedRequest, plan
from cluster.bench.report import summarize
from deployments.cost_measurement import CostMeasurement
from deployments.devices import text_encoder, unets, vae
from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.engine.engine import Engine
from deployments.engine.fingerprint import model_ref
from deployments.engine.messages import DenoisedLatents, DenoiseRequest, PromptEmbeds
from deployments.engine.model_pool import KnownModel, OneModel
from deployments.engine.model_source import load_model_info
from deployments.engine.prompt_text import PromptText
from deployments.engine.samplers import SamplerTables
from deployments.engine.stage_errors import sound
from serve.app import build_app as build_midstep
from serve.config.app import AppConfig
from serve.config.model import CostModelFile

MAX_ROWS = 16
STEPS = 20
SHAPE = (16, 16)
# Modelled, not measured: steps as short as a fast GPU's, which serving has to keep up with.
SLEEPING = CostModel(
    encode=Curve(0.005, 8, 0.0005),
    forward=StageCost(((SHAPE, Curve(0.018, 2, 0.006)),)),
    decode=StageCost(((SHAPE, Curve(0.010, 1, 0.010)),)),
)
_COST_MODEL = "MIDSTEP_BENCHMARK_COST_MODEL"  # passes the simulated device's costs to the server's process


def config(num_denoisers: int) -> AppConfig:
    cost_model = os.environ.get(_COST_MODEL)
    model = {"device": "simulated", "cost_model": cost_model} if cost_model else {"device": "cpu"}
    return AppConfig.model_validate(
        {
            "model": model,
            "denoiser": {
                "num_threads": 1,
                "max_rows": MAX_ROWS,
                "rows_per_forward": MAX_ROWS,
                "min_replicas": num_denoisers,
            },
            "limits": {"max_queue": 4096, "max_wait_s": 600, "max_width": 128, "max_height": 128},
        }
    )


def build_app(num_threads: int) -> Application:
    """num_threads: threads of all denoisers, one each"""
    return build_midstep(config(num_threads))


class BareEngine:
    """Prompts to pixels in this process, on one of its cores."""

    def __init__(self) -> None:
        app = config(1)
        source, placement, known = app.model.source(), app.placement(), app.model.known_cost()
        info = load_model_info(source)
        self._decodes = not placement.is_simulated
        self._encoder = text_encoder(source, placement, known)
        self._decoder = vae(source, placement, known).decoder
        self._tables = SamplerTables(info.scheduler_config)
        model = model_ref(source)
        measurement = CostMeasurement(app.latent_shapes(info), known)
        found = unets(model, placement, measurement, app.engine_config(info), 1)
        torch.set_num_threads(1)  # the same as in the Denoiser
        # Not measured. Rows cost nothing here, so all share a forward.
        cost = known.forward if known else StageCost(((SHAPE, Curve(0.01, 1, 0.0)),))
        known_model = KnownModel(found.loader.describe(model), self._tables, cost)
        self._engine = Engine(OneModel(known_model, found.first), found.config)
        self._side = info.default_height
        self._latent_shape = (self._side // info.scale_factor, self._side // info.scale_factor)
        self._encoded: dict[str, PromptEmbeds] = {}

    def _embeds(self, prompt: str) -> PromptEmbeds:
        """Embeddings, encoded once like in the server's cache."""
        if prompt not in self._encoded:
            text = PromptText(prompt, "", guided=True, deterministic=False)
            encoded = sound(self._encoder.encode(self._encoder.texts(text)))
            self._encoded[prompt] = self._encoder.assemble(text, encoded)
        return self._encoded[prompt]

    def run(self, requests: list[PlannedRequest]) -> None:
        for index, planned in enumerate(requests):
            embeds = self._embeds(planned.prompt)
            self._engine.add(
                DenoiseRequest(
                    request_id=str(index),
                    embeds=embeds,
                    height=self._side,
                    width=self._side,
                    latent_shape=self._latent_shape,
                    sampler=SAMPLER,
                    num_inference_steps=STEPS,
                    num_calls=STEPS,
                    guidance_scale=GUIDANCE_SCALE,
                    seed=index,
                )
            )
        while self._engine.num_requests:
            events = self._engine.step().events
            latents = [event.latents for event in events if isinstance(event, DenoisedLatents)]
            if latents and self._decodes:
                self._decoder.decode(latents)


class BareEngines:
    """A number of bare engines that share the work."""

    def __init__(self, number: int) -> None:
        fresh = multiprocessing.get_context("spawn")
        self._processes = [ProcessPoolExecutor(1, fresh) for _ in range(number)]

    def run(self, requests: list[PlannedRequest]) -> None:
        number = len(self._processes)
        shares = (requests[first::number] for first in range(number))
        runs = [
            process.submit(_run_engine, share) for process, share in zip(self._processes, shares, strict=True)
        ]
        for run in runs:
            run.result()


@cache
def _engine() -> BareEngine:
    """The engine of this process."""
    return BareEngine()


def _run_engine(requests: list[PlannedRequest]) -> None:
    _engine().run(requests)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--denoisers", type=int, help="(2; 1, if simulated)")
    parser.add_argument(
        "--proxy", choices=PROXIES, default="haproxy", help="haproxy, as in production, or Serve's own"
    )
    args = parser.parse_args()
    denoisers = args.denoisers or (1 if args.simulated else 2)
    mix = Mix(prompts=PROMPTS, num_inference_steps={STEPS: 1.0}, guidance_scales={GUIDANCE_SCALE: 1.0})
    requests = plan([0.0] * args.requests, mix, seed=1)

    with tempfile.TemporaryDirectory() as folder:
        if args.simulated:
            path = Path(folder) / "cost_model.json"
            file = CostModelFile(path="any", dtype="any", device="modelled", cost_model=SLEEPING)
            path.write_text(file.model_dump_json())
            os.environ[_COST_MODEL] = str(path)
        bare = BareEngines(denoisers)
        bare.run(requests[:16])  # warm-up
        with running(midstep("benchmarks.saturation", args.proxy), denoisers) as url:
            asyncio.run(run_load(Target(url), requests[:16]))
            pairs = []
            for _ in range(args.repeats):
                outcomes = asyncio.run(run_load(Target(url), requests))
                summary = summarize(outcomes)
                assert summary.counts == {"completed": len(requests)}, summary.counts
                alone = len(requests) / seconds(partial(bare.run, requests))
                pairs.append((summary.images_per_s, alone))
                print(f"served {pairs[-1][0]:.2f}, bare {pairs[-1][1]:.2f} images/s", flush=True)
    served, alone = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    device = "a device that only sleeps" if args.simulated else "the embedded model"
    print(f"{device}: served {served:.2f} images/s, bare engines {alone:.2f} images/s, {100 * ratio:.1f}%")


if __name__ == "__main__":
    main()
