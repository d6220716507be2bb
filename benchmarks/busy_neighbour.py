"""How much a busy process slows down pictures, by OpenMP's wait policy and number of threads. Three cases:
single pictures alone, single pictures beside a process that only loops, and a burst.

    python -m benchmarks.busy_neighbour

Each configuration is a separate server, over HTTP. The cases take turns within it.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from ray.serve import Application

from benchmarks.engine import GUIDANCE_SCALE, PROMPTS, SAMPLER, seconds
from benchmarks.peers.systems import midstep, running
from cluster.bench.load import Target, run_load
from cluster.bench.mix import Mix, plan
from cluster.bench.report import summarize
from cluster.bench.results import new_results
from serve.app import build_app as build_midstep
from serve.config.app import AppConfig

STEPS = 20
POLICIES = ("unset", "ACTIVE", "PASSIVE")  # unset: OpenMP spins for a while and then sleeps


def build_app(num_threads: int) -> Application:
    config = {
        "denoiser": {"num_threads": num_threads},
        "limits": {"max_queue": 1000, "max_wait_s": 100},
        "jobs": {"data_folder": tempfile.mkdtemp(prefix="midstep-")},
    }
    return build_midstep(AppConfig.model_validate(config))


def _loop() -> None:
    while True:
        pass


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """A process that takes as much as it can get of one core."""
    process = multiprocessing.get_context("spawn").Process(target=_loop, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def picture_s(client: httpx.Client, seed: int) -> float:
    body = {
        "prompt": PROMPTS[0],
        "seed": seed,
        "sampler": SAMPLER,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "response_format": "b64_json",
    }
    return seconds(lambda: client.post("/v1/images/generations", json=body).raise_for_status())


def burst_images_per_s(url: str, num_images: int) -> float:
    mix = Mix(prompts=PROMPTS, num_inference_steps={STEPS: 1.0}, guidance_scales={GUIDANCE_SCALE: 1.0})
    return summarize(asyncio.run(run_load(Target(url), plan([0.0] * num_images, mix, seed=1)))).images_per_s


def measured(policy: str, num_threads: int, rounds: int, pictures: int, burst: int) -> dict[str, Any]:
    """Medians and the single values."""
    system = midstep("benchmarks.busy_neighbour", "serve")
    os.environ.pop("OMP_WAIT_POLICY", None)  # for the server; this process has already read it
    if policy != "unset":
        system = replace(system, variables={**system.variables, "OMP_WAIT_POLICY": policy})
    cases: dict[str, list[float]] = {"alone_s": [], "beside_s": [], "burst_images_per_s": []}
    with running(system, num_threads) as url, httpx.Client(base_url=url, timeout=600) as client:
        for _ in range(2):
            picture_s(client, seed=0)
        for done in range(rounds):
            seeds = range(pictures * done, pictures * (done + 1))
            cases["alone_s"] += [picture_s(client, seed) for seed in seeds]
            with busy_neighbour():
                cases["beside_s"] += [picture_s(client, seed) for seed in seeds]
            cases["burst_images_per_s"].append(burst_images_per_s(url, burst))
    medians = {name: statistics.median(values) for name, values in cases.items()}
    return {"wait_policy": policy, "num_threads": num_threads, "medians": medians, "all": cases}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=3, help="pictures of each kind per round")
    parser.add_argument("--burst", type=int, default=24, help="requests at once")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    print("| OMP_WAIT_POLICY | threads | alone, s | beside a busy process, s | burst, images/s |")
    print("|---|---:|---:|---:|---:|", flush=True)
    for num_threads in args.threads:
        for policy in POLICIES:
            result = measured(policy, num_threads, args.rounds, args.pictures, args.burst)
            results.append(result)
            shown = " | ".join(f"{value:.2f}" for value in result["medians"].values())
            print(f"| {policy} | {num_threads} | {shown} |", flush=True)
            if args.json:  # after each, as the next one may take minutes
                _write(args.json, {"steps": STEPS, "burst": args.burst}, results)


def _write(path: Path, settings: dict[str, Any], results: list[dict[str, Any]]) -> None:
    about = new_results("busy_neighbour", settings, [])
    record = {"date": about.date, "hardware": about.hardware, "versions": about.versions}
    path.write_text(json.dumps(record | {"settings": settings, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
