"""Latencies of the same load with the least-work router and with Serve's own router.

    python -m benchmarks.routing

Devices are simulated, and slow enough for two cores to keep up with all of them; all else is real. The load
asks for 4, 20, 30 or 50 steps.
"""

import argparse
import asyncio
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ray.serve import Application

from benchmarks.engine import GUIDANCE_SCALE, PROMPTS
from benchmarks.fleet import CAPACITY, config
from benchmarks.fleet import STEPS as FLEET_STEPS
from benchmarks.peers.systems import midstep, running
from cluster.bench.arrivals import poisson
from cluster.bench.load import Target, run_load
from cluster.bench.mix import Mix, plan
from cluster.bench.report import Summary, summarize
from serve.app import build_app as build_midstep
from serve.config.deployment_options import stage_options

STEPS: Mapping[Any, float] = {4: 0.2, 20: 0.4, 30: 0.3, 50: 0.1}
MEAN_STEPS = sum(steps * share for steps, share in STEPS.items())
ROUTERS = ("Serve's own", "least work")
_FOLDER, _ROUTER = "MIDSTEP_BENCHMARK_FOLDER", "MIDSTEP_BENCHMARK_ROUTER"  # variables of the server's process


def _with_serves_own(*of: Any) -> dict[str, Any]:
    """The options of a stage, with Serve's own router."""
    options = stage_options(*of)
    options.pop("request_router_config", None)
    return options


def build_app(num_denoisers: int) -> Application:
    app = config(num_denoisers, Path(os.environ[_FOLDER]))
    stages = {
        name: getattr(app, name).model_copy(update={"num_gpus": 0.0, "num_cpus": 0.0})
        for name in ("encoder", "denoiser", "decoder")
    }
    # A denoiser's default, so that no request waits outside.
    stages["denoiser"] = stages["denoiser"].model_copy(update={"max_ongoing_requests": 64})
    own = os.environ[_ROUTER] == ROUTERS[0]
    with patch("serve.app.stage_options", _with_serves_own if own else stage_options):
        return build_midstep(app.model_copy(update=stages))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--denoisers", type=int, default=8)
    parser.add_argument("--load", type=float, default=0.8, help="share of the devices' capacity")
    parser.add_argument("--duration", type=float, default=150.0, help="seconds")
    args = parser.parse_args()
    mix = Mix(prompts=PROMPTS, num_inference_steps=STEPS, guidance_scales={GUIDANCE_SCALE: 1.0})
    rate = args.load * args.denoisers * CAPACITY * FLEET_STEPS / MEAN_STEPS
    requests = plan(poisson(rate, args.duration, seed=1), mix, seed=1)
    measured: dict[str, Summary] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_FOLDER] = folder
        for router in ROUTERS:
            os.environ[_ROUTER] = router
            with running(midstep("benchmarks.routing"), args.denoisers) as url:
                summary = summarize(asyncio.run(run_load(Target(url), requests, timeout_s=600.0)))
            assert summary.counts == {"completed": len(requests)}, summary.counts
            measured[router] = summary
            print(
                f"{router}: mean {summary.latency_mean_s:.2f} s, p50 {summary.latency_p50_s:.2f} s, "
                f"p95 {summary.latency_p95_s:.2f} s, {summary.images_per_s:.2f} images/s",
                flush=True,
            )
    own, least = (measured[router] for router in ROUTERS)
    assert own.latency_mean_s
    assert own.latency_p95_s
    assert least.latency_mean_s
    assert least.latency_p95_s
    print(
        f"least work: mean {least.latency_mean_s / own.latency_mean_s:.2f} times, "
        f"p95 {least.latency_p95_s / own.latency_p95_s:.2f} times that of Serve's own, simulated"
    )


if __name__ == "__main__":
    main()
