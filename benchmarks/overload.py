"""Overload: how much is still answered in time, how fast the rest is refused, and how soon the server
recovers. Open loop over HTTP, on a simulated device.

    python -m benchmarks.overload
"""

import argparse
import asyncio
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ray.serve import Application

from benchmarks.engine import GUIDANCE_SCALE, PROMPTS
from benchmarks.peers.systems import PROXIES, midstep, running
from benchmarks.saturation import MAX_ROWS, SLEEPING, STEPS
from cluster.bench.answers import Kind
from cluster.bench.arrivals import poisson
from cluster.bench.load import RequestOutcome, Target, run_load
from cluster.bench.mix import Mix, PlannedRequest, plan
from cluster.bench.report import summarize
from serve.app import build_app as build_midstep
from serve.config.app import AppConfig
from serve.config.model import CostModelFile

MAX_WAIT_S = 10.0
# A request is in time within the longest wait and its own time among others, with some margin.
SLO_S = 1.5 * MAX_WAIT_S
SHAPE, _ = SLEEPING.forward.curves[0]
CAPACITY = MAX_ROWS / 2 / (STEPS * SLEEPING.forward.seconds(SHAPE, MAX_ROWS))  # guided images/s
CALM = 0.5  # share of the capacity
_FOLDER = "MIDSTEP_BENCHMARK_FOLDER"  # passes the folder of files to the server's process
_COST_MODEL = "cost_model.json"  # in that folder


def build_app(num_threads: int) -> Application:
    folder = Path(os.environ[_FOLDER])
    config = {
        "model": {"device": "simulated", "cost_model": str(folder / _COST_MODEL)},
        "denoiser": {"num_threads": num_threads, "max_rows": MAX_ROWS, "rows_per_forward": MAX_ROWS},
        "limits": {"max_queue": 4096, "max_wait_s": MAX_WAIT_S, "max_width": 128, "max_height": 128},
        "jobs": {"data_folder": str(folder / "data")},
    }
    return build_midstep(AppConfig.model_validate(config))


def planned(multiple: float, duration_s: float, start_s: float = 0.0) -> list[PlannedRequest]:
    mix = Mix(prompts=PROMPTS, num_inference_steps={STEPS: 1.0}, guidance_scales={GUIDANCE_SCALE: 1.0})
    requests = plan(poisson(multiple * CAPACITY, duration_s, seed=1), mix, seed=1)
    return [replace(request, due_s=start_s + request.due_s) for request in requests]


def described(name: str, outcomes: Sequence[RequestOutcome]) -> str:
    summary = summarize(outcomes, SLO_S)
    refused = [outcome.latency_s for outcome in outcomes if outcome.answer.kind is Kind.BUSY]
    refusals = f", refusals p99 {1000 * np.percentile(refused, 99):.0f} ms" if refused else ""
    return f"{name}: {summary.goodput_images_per_s:.2f} images/s in time; {dict(summary.counts)}{refusals}"


def recovery_s(before: Sequence[RequestOutcome], after: Sequence[RequestOutcome]) -> float:
    """Seconds from the end of the overload until requests are about as fast as before it."""
    usual_s = summarize(before).latency_p99_s
    assert usual_s is not None, "none was served before the overload"
    start_s = after[0].request.due_s
    slow = [
        outcome.request.due_s - start_s
        for outcome in after
        if outcome.answer.kind is not Kind.COMPLETED or outcome.latency_s > 1.5 * usual_s
    ]
    return max(slow, default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of each load")
    parser.add_argument("--multiples", type=float, nargs="+", default=[1.0, 2.0, 5.0, 10.0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--proxy", choices=PROXIES, default="haproxy", help="haproxy, as in production, or Serve's own"
    )
    args = parser.parse_args()

    def load(url: str, requests: Sequence[PlannedRequest]) -> list[RequestOutcome]:
        return asyncio.run(run_load(Target(url), requests))

    with tempfile.TemporaryDirectory() as folder:
        file = CostModelFile(path="any", dtype="any", device="modelled", cost_model=SLEEPING)
        (Path(folder) / _COST_MODEL).write_text(file.model_dump_json())
        os.environ[_FOLDER] = folder
        print(
            f"a simulated device that does {CAPACITY:.2f} images/s at most; HTTP by {args.proxy}", flush=True
        )
        with running(midstep("benchmarks.overload", args.proxy), args.threads) as url:
            calm = load(url, planned(CALM, args.duration))
            print(described(f"{CALM:g} of that", calm), flush=True)
            for multiple in args.multiples:
                requests = planned(multiple, args.duration)
                after = planned(CALM, args.duration, start_s=args.duration)
                outcomes = load(url, requests + after)
                print(described(f"{multiple:g} times", outcomes[: len(requests)]), flush=True)
                recovered_s = recovery_s(calm, outcomes[len(requests) :])
                print(f"  then {CALM:g} again: as before after {recovered_s:.1f} s", flush=True)


if __name__ == "__main__":
    main()
