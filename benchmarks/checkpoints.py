"""The cost of checkpoints: images per second at saturation over HTTP, with hardly any and with far too many.

    python -m benchmarks.checkpoints

A checkpoint every two seconds costs less than the difference between two runs. One every tenth of a second
costs twenty times as much, which can be measured. The cost of the usual interval is a twentieth of that.
"""

import argparse
import asyncio
import os
import statistics
import tempfile

from ray.serve import Application

from benchmarks.engine import GUIDANCE_SCALE, PROMPTS
from benchmarks.peers.systems import midstep, running
from cluster.bench.load import Target, run_load
from cluster.bench.mix import Mix, plan
from cluster.bench.report import summarize
from serve.app import build_app as build_midstep
from serve.config.app import AppConfig
from serve.config.internal import InternalConfig

STEPS = 20
SELDOM_S, OFTEN_S = 3600.0, 0.1
_INTERVAL = "MIDSTEP_BENCHMARK_INTERVAL"  # passes the interval to the server's process
_FOLDER = "MIDSTEP_BENCHMARK_FOLDER"


def build_app(num_threads: int) -> Application:
    config = {
        "model": {"device": "cpu"},
        "denoiser": {
            "num_threads": num_threads,
            "rows_per_forward": 16,
        },
        "internal": {"checkpoint_interval_s": float(os.environ[_INTERVAL])},
        "limits": {"max_queue": 4096},
        "jobs": {"data_folder": os.environ[_FOLDER]},
    }
    return build_midstep(AppConfig.model_validate(config))


def images_per_s(interval_s: float, num_requests: int, repeats: int, num_threads: int) -> float:
    mix = Mix(prompts=PROMPTS, num_inference_steps={STEPS: 1.0}, guidance_scales={GUIDANCE_SCALE: 1.0})
    requests = plan([0.0] * num_requests, mix, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {_INTERVAL: str(interval_s), _FOLDER: folder}
        with running(midstep("benchmarks.checkpoints"), num_threads) as url:
            asyncio.run(run_load(Target(url), requests[:16]))
            runs = [summarize(asyncio.run(run_load(Target(url), requests))) for _ in range(repeats)]
    assert all(run.counts == {"completed": num_requests} for run in runs), [run.counts for run in runs]
    return statistics.median(run.images_per_s for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    measured = [
        images_per_s(interval_s, args.requests, args.repeats, args.threads)
        for interval_s in (SELDOM_S, OFTEN_S, OFTEN_S, SELDOM_S)
    ]
    seldom, often = statistics.mean(measured[::3]), statistics.mean(measured[1:3])
    usual_s = InternalConfig().checkpoint_interval_s
    cost = (seldom / often - 1) * OFTEN_S / usual_s
    print(
        f"{seldom:.2f} images/s without checkpoints, {often:.2f} with one every {OFTEN_S:g} s: "
        f"one every {usual_s:g} s costs {100 * cost:.2f}%"
    )


if __name__ == "__main__":
    main()
