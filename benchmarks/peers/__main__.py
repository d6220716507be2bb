"""Midstep against other servers that a user might pick: same weights, machine and arrivals, in one run.

    python -m benchmarks.peers                     all systems, each at all rates
    python -m benchmarks.peers --systems midstep litserve --base-rate 4.2
    python -m benchmarks.peers --simulated         the same on a modelled device

Each system in turn is started, warmed up, given a burst that saturates it (its capacity), loaded open loop at
multiples of the capacity of `@serve.batch`, and stopped. So `@serve.batch` is measured first. Every system
has a process per core with one torch thread, or on a simulated device one process. Nothing else should run on
the machine.
"""

import argparse
import asyncio
import os
import random
import signal
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import REQUIREMENTS, ROOT
from benchmarks.peers.report import COMPARED_AT, REFERENCE, Measured, ratios, table, write_json
from benchmarks.peers.simulated_device import COST_MODEL_VARIABLE, u_net_only
from benchmarks.peers.systems import SYSTEMS, running
from cluster.bench.arrivals import poisson
from cluster.bench.load import RequestOutcome, Target, run_load
from cluster.bench.mix import Mix, PlannedRequest, plan
from cluster.bench.report import Summary, plot, summarize
from models.shapes.scenes import random_scene

STEPS: Mapping[Any, float] = {4: 0.2, 20: 0.4, 30: 0.3, 50: 0.1}
GUIDANCE_SCALE = 5.0
NUM_PROMPTS = 200
TIMEOUT_S = 1800.0


def mix(seed: int) -> Mix:
    rng = random.Random(seed)
    prompts = [random_scene(rng).prompt() for _ in range(NUM_PROMPTS)]
    return Mix(prompts=prompts, num_inference_steps=STEPS, guidance_scales={GUIDANCE_SCALE: 1.0})


def load(url: str, requests: list[PlannedRequest]) -> Summary:
    outcomes: list[RequestOutcome] = asyncio.run(run_load(Target(url), requests, timeout_s=TIMEOUT_S))
    return summarize(outcomes)


def measure(name: str, base_rate: float | None, arguments: argparse.Namespace) -> Measured:
    """base_rate: requests/s, whose multiples are the loads; None for this system's own capacity"""
    system, asked = SYSTEMS[name], mix(arguments.seed)
    with running(system, arguments.threads) as url:
        load(url, plan([0.0] * arguments.warm_up, asked, arguments.seed + 1))
        capacity = load(url, plan([0.0] * arguments.burst, asked, arguments.seed))
        print(f"{system.title}: capacity {capacity.images_per_s:.2f} images/s", flush=True)
        base_rate = base_rate or capacity.images_per_s
        loads = {}
        for multiple in arguments.rates:
            due = poisson(multiple * base_rate, arguments.duration, arguments.seed)
            loads[multiple] = load(url, plan(due, asked, arguments.seed))
            run = loads[multiple]
            print(
                f"{system.title}: {multiple:.0%}: {run.counts}, mean and p95 in seconds:",
                run.latency_mean_s,
                run.latency_p95_s,
                flush=True,
            )
    return Measured(system.title, capacity, loads)


def measure_all(arguments: argparse.Namespace) -> Iterator[dict[str, Measured]]:
    """Yields all results so far after each system, in the order of SYSTEMS. The reference goes first, because
    its capacity sets all rates.
    """
    base_rate = arguments.base_rate
    measured = {}
    for name in sorted(arguments.systems, key=lambda name: name != REFERENCE):
        measured[name] = measure(name, base_rate, arguments)
        base_rate = base_rate or measured[name].capacity.images_per_s
        yield {name: measured[name] for name in SYSTEMS if name in measured}


def device(arguments: argparse.Namespace) -> str:
    """A description of the device."""
    if not arguments.simulated:
        return "CPU, the embedded model"
    return f"simulated: {u_net_only(arguments.slower).device}; the U-Net of Stable Diffusion 1.5 at 512x512"


def settings(arguments: argparse.Namespace) -> Mapping[str, Any]:
    asked = {"device": device(arguments), "num_inference_steps": STEPS, "guidance_scale": GUIDANCE_SCALE}
    options = ("threads", "warm_up", "burst", "rates", "duration", "seed")
    packages = {name: version(name) for name in ("diffusers", "transformers")}
    pins = REQUIREMENTS.read_text().splitlines()
    peers = dict(line.partition(" ")[0].split("==") for line in pins if "==" in line.partition("#")[0])
    return asked | {name: getattr(arguments, name) for name in options} | {"versions": packages | peers}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulated", action="store_true", help="on a modelled device, which sleeps")
    parser.add_argument("--slower", type=float, default=3.0, help="slowdown of the simulated device")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--rates", type=float, nargs="+", default=[0.3, 0.5, 0.7, COMPARED_AT, 0.9])
    parser.add_argument("--base-rate", type=float, help="requests/s instead of the capacity of @serve.batch")
    parser.add_argument("--duration", type=float, default=120.0, help="seconds of arrivals at each rate")
    parser.add_argument("--burst", type=int, default=120, help="requests at once, for the capacity")
    # BentoML learns from its first dozen requests, run alone. Midstep compiles a sampler per step count.
    parser.add_argument("--warm-up", type=int, default=30, help="uncounted requests at once before the load")
    parser.add_argument("--threads", type=int, help="processes per system, with one torch thread each (2)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="(benchmarks/results/peers*.json)")
    parser.add_argument("--plot", type=Path, help="(docs/latency*.png)")
    arguments = parser.parse_args()
    suffix = "-simulated" if arguments.simulated else ""
    arguments.threads = arguments.threads or (1 if arguments.simulated else 2)
    arguments.json = arguments.json or ROOT / "benchmarks" / "results" / f"peers{suffix}.json"
    arguments.plot = arguments.plot or ROOT / "docs" / f"latency{suffix}.png"
    if REFERENCE not in arguments.systems and arguments.base_rate is None:
        parser.error(f"--base-rate is needed without {REFERENCE}, whose capacity sets the rates")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the server too
    with tempfile.TemporaryDirectory() as folder:
        if arguments.simulated:
            cost_model = Path(folder) / "cost_model.json"
            cost_model.write_text(u_net_only(arguments.slower).model_dump_json())
            os.environ[COST_MODEL_VARIABLE] = str(cost_model)
        title = f"Device: {device(arguments)}"
        for measured in measure_all(arguments):
            write_json(measured, settings(arguments), arguments.json)
            loads = {system.title: list(system.loads.values()) for system in measured.values()}
            plot(loads, arguments.plot, title)
    print("", title, "", table(measured), "", ratios(measured), sep="\n")


if __name__ == "__main__":
    main()
