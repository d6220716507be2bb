"""How fast jobs can be submitted, each on disk before it is answered: open loop over HTTP, SQLite.

    python -m benchmarks.jobs

It runs once while a simulated device only sleeps, so that the cores are free, and once while the engine runs
the submitted jobs.
"""

import argparse
import asyncio
import os
import tempfile
from pathlib import Path

from ray.serve import Application

from benchmarks.engine import PROMPTS
from benchmarks.peers.systems import PROXIES, midstep, running
from cluster.bench.arrivals import constant
from cluster.bench.load import Target, run_load
from cluster.bench.mix import Mix, plan
from cluster.bench.report import Summary, summarize
from deployments.engine.cost import CostModel, Curve, StageCost
from serve.app import build_app as build_midstep
from serve.config.app import AppConfig
from serve.config.model import CostModelFile

STEPS = 20
# Slow enough that hardly any job finishes during the run.
SLEEPING = CostModel(
    encode=Curve(0.005, 8, 0.0005),
    forward=StageCost((((16, 16), Curve(0.5, 2, 0.1)),)),
    decode=StageCost((((16, 16), Curve(0.01, 1, 0.01)),)),
)
BODY = {
    "version": "shapes",
    "input": {
        "prompt": "{prompt}",
        "seed": "{seed}",
        "num_inference_steps": "{num_inference_steps}",
    },
}
_FOLDER = "MIDSTEP_BENCHMARK_FOLDER"  # passes the folder of jobs to the server's process
_COST_MODEL = "cost_model.json"  # in that folder, if the device is simulated


def build_app(num_threads: int) -> Application:
    folder = Path(os.environ[_FOLDER])
    simulated = {"device": "simulated", "cost_model": str(folder / _COST_MODEL)}
    config = {
        "model": simulated if (folder / _COST_MODEL).exists() else {"device": "cpu"},
        "denoiser": {"num_threads": num_threads},
        "limits": {"max_width": 128, "max_height": 128},
        "jobs": {"data_folder": str(folder / "data")},
    }
    return build_midstep(AppConfig.model_validate(config))


def submissions(rate: float, duration_s: float, num_threads: int, proxy: str, is_simulated: bool) -> Summary:
    with tempfile.TemporaryDirectory() as folder:
        if is_simulated:
            file = CostModelFile(path="any", dtype="any", device="modelled", cost_model=SLEEPING)
            (Path(folder) / _COST_MODEL).write_text(file.model_dump_json())
        os.environ[_FOLDER] = folder
        mix = Mix(prompts=PROMPTS, num_inference_steps={STEPS: 1.0})
        with running(midstep("benchmarks.jobs", proxy), num_threads) as url:
            target = Target(url, path="/v1/predictions", body=BODY)
            asyncio.run(run_load(target, plan(constant(rate / 2, 3.0), mix, seed=2)))
            return summarize(asyncio.run(run_load(target, plan(constant(rate, duration_s), mix, seed=1))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--idle-rate", type=float, default=150.0, help="jobs/s while the device sleeps")
    parser.add_argument("--busy-rate", type=float, default=60.0, help="jobs/s while the engine runs")
    parser.add_argument("--duration", type=float, default=20.0, help="seconds of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--proxy", choices=PROXIES, default="haproxy", help="haproxy, as in production, or Serve's own"
    )
    args = parser.parse_args()
    print(f"HTTP by {args.proxy}", flush=True)
    for rate, is_simulated in ((args.idle_rate, True), (args.busy_rate, False)):
        summary = submissions(rate, args.duration, args.threads, args.proxy, is_simulated)
        assert summary.latency_p50_s is not None, summary.counts
        assert summary.latency_p95_s is not None
        p50_ms, p95_ms = 1000 * summary.latency_p50_s, 1000 * summary.latency_p95_s
        device = "the device sleeps" if is_simulated else "the engine runs"
        print(
            f"{device}: {rate:g} jobs/s for {args.duration:g} s, {summary.images_per_s:.1f}/s taken, "
            f"p50 {p50_ms:.0f} ms, p95 {p95_ms:.0f} ms; {dict(summary.counts)}; "
            f"the generator was late by {1000 * summary.generator_lag_p99_s:.0f} ms (p99)",
            flush=True,
        )


if __name__ == "__main__":
    main()
