"""Adapters mixed in one forward against a forward for each adapter, simulated: only the time of forwards on
one device.

    python -m benchmarks.adapter_mixes                        modelled: an H200 with SD 1.5 and with SDXL
    python -m benchmarks.adapter_mixes cost_model.json        measured by `midstep profile`

All get the same Poisson arrivals, at shares of what the device does without adapters. Some of the requests
have one of 30 adapters of rank 32. Mixing is Midstep's scheduler. Grouping is the same scheduler, but a
forward has requests of one adapter, or without any, as in servers that group by adapter. Its adapted forwards
cost what mixed ones do ("grouped"), or nothing more than plain ones, and no time to change weights
("merged"): the most that grouping could gain by merging weights. Servers that group by adapter do not change
a batch between steps: "batches" have one adapter and one number of steps, cost nothing more than plain ones,
and run to their end, the largest first. Ratios are those of the means of all runs.
"""

import argparse
import json
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.ray_serve_batch import next_group
from benchmarks.step_scheduling import BURST, Denoising, Device, Policy, steps_of
from cluster.bench.adapters import by_place
from cluster.bench.arrivals import poisson
from cluster.bench.results import new_results
from cluster.devices.h200 import FILES, FOLDER
from deployments.engine.adapters import AdapterRef, AdapterUse
from deployments.engine.cost import StageCost
from deployments.engine.engine_config import EngineConfig
from deployments.engine.step_scheduler import Group, StepScheduler
from serve.config.model import CostModelFile

NUM_ADAPTERS, RANK, MAX_RANK = 30, 32, 128
NAMES = [f"adapter-{place}" for place in range(1, NUM_ADAPTERS + 1)]
POPULARITIES: Mapping[str, Mapping[str, float]] = {
    "uniform": dict.fromkeys(NAMES, 1.0),
    "zipf": by_place(NAMES),
}
LOADS, SHARES, RUNS = (0.5, 0.6, 0.7, 0.8, 0.9), (0.05, 0.3), 3
OTHERS = ("grouped", "merged", "batches")
MODES = ("plain", "mixed", *OTHERS)
PERCENTILES = (95, 99)


@dataclass(frozen=True)
class Arrival:
    """A request for one image. adapter: its name; None for none"""

    at: float
    steps: int
    adapter: str | None


def arrivals(
    rate: float, requests: int, share: float, weights: Mapping[str, float], seed: int
) -> list[Arrival]:
    """weights: of the adapters that `share` of the requests have"""
    times = poisson(rate, requests / rate, seed)
    rng = random.Random(f"adapters {seed}")
    drawn = rng.choices(list(weights), list(weights.values()), k=len(times))
    return [
        Arrival(at, steps, name if rng.random() < share else None)
        for at, steps, name in zip(times, steps_of(len(times), seed), drawn, strict=True)
    ]


@dataclass
class Counted:
    """A policy's forwards. mixed: with different adapters, or with adapters and without"""

    policy: Policy
    forwards: int = 0
    images: int = 0
    mixed: int = 0

    def __call__(self, present: Sequence[Denoising], now: float) -> tuple[Sequence[Denoising], int]:
        members, times = self.policy(present, now)
        self.forwards += times
        self.images += times * len(members)
        self.mixed += len({item.request.adapters for item in members}) > 1
        return members, times


class Bench:
    """One device."""

    def __init__(self, cost: StageCost) -> None:
        (shape, _), *_ = cost.curves
        most = (cost.padded_to or [count for count, _ in cost.curves[0][1].residuals] or [64])[-1]
        self._config = EngineConfig(most, None, 2, shape, cost.padded_to, max_rank=MAX_RANK)
        self._costs = {True: cost, False: replace(cost, adapted=())}  # by whether adapters cost time
        self.row_cap = self._config.row_cap(Device(cost).group, cost)
        self.capacity = BURST / max(
            self.latencies_s("plain", [Arrival(0.0, steps, None) for steps in steps_of(BURST, 0)])[0]
        )

    def latencies_s(self, mode: str, load: Sequence[Arrival]) -> tuple[list[float], Counted]:
        cost = self._costs[mode in ("mixed", "grouped")]
        device = Device(cost)

        @cache
        def seconds(group: Group, rows: int, rank: int) -> float:
            return self._config.seconds(group, cost, rows, rank)

        scheduler = StepScheduler(lambda _: self.row_cap, seconds, MAX_RANK)

        def step_by_step(present: Sequence[Denoising], now: float) -> tuple[Sequence[Denoising], int]:
            return scheduler.admit(present, now), 1

        policy = Counted(_to_their_end if mode == "batches" else step_by_step)
        return device.run(policy, [self._item(device, mode, one) for one in load]), policy

    def _item(self, device: Device, mode: str, one: Arrival) -> Denoising:
        if one.adapter is None or mode == "plain":
            return device.denoising(one.at, one.steps)
        use = AdapterUse(AdapterRef(one.adapter, "", one.adapter, RANK, 0), 1.0)
        # Only requests of one group share forwards; the groups take turns by slack.
        group = device.group if mode == "mixed" else replace(device.group, isolated=one.adapter)
        return device.denoising(one.at, one.steps, (use,), group)

    def compare(self, load: float, share: float, popularity: str, requests: int) -> dict[str, Any]:
        """The means of several runs, and how many times as long as mixing each of the others takes."""
        found: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
        for seed in range(RUNS):
            given = arrivals(load * self.capacity, requests, share, POPULARITIES[popularity], seed)
            for mode in MODES:
                found[mode].append(_figures(*self.latencies_s(mode, given)))
        means = {
            mode: {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
            for mode, runs in found.items()
        }
        of_mixing = means["mixed"]
        ratios = {
            mode: {name: means[mode][name] / of_mixing[name] for name in ("mean_s", "p95_s", "p99_s")}
            for mode in OTHERS
        }
        return {
            "load": load,
            "share": share,
            "popularity": popularity,
            **_rounded(means),
            "to_mixing": _rounded(ratios),
        }


def _to_their_end(present: Sequence[Denoising], now: float) -> tuple[Sequence[Denoising], int]:
    members = next_group(present, lambda item: (item.request.adapters, item.request.num_calls))
    return members, members[0].calls_left


def _figures(latencies_s: Sequence[float], counted: Counted) -> dict[str, float]:
    p95, p99 = np.percentile(latencies_s, PERCENTILES)
    return {
        "mean_s": statistics.mean(latencies_s),
        "p95_s": float(p95),
        "p99_s": float(p99),
        "images_per_forward": counted.images / counted.forwards,
        "mixed_forwards": counted.mixed / counted.forwards,
    }


def _rounded(figures: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {name: {key: round(value, 3) for key, value in some.items()} for name, some in figures.items()}


def measured(bench: Bench, requests: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every load at 15%, other shares at a load of 80%, and adapters that are all as popular there."""
    cases = [(load, 0.15, "zipf") for load in LOADS]
    cases += [(0.8, 0.15, "uniform"), *((0.8, share, "zipf") for share in SHARES)]
    found = []
    for load, share, popularity in cases:
        one = bench.compare(load, share, popularity, requests)
        found.append(one)
        means = ", ".join(f"{mode} {one[mode]['mean_s']:.2f}" for mode in MODES)
        ratios = ", ".join(f"{one['to_mixing'][mode]['mean_s']:.2f}" for mode in OTHERS)
        say(f"  load {load:.0%}, {share:.0%} adapted, {popularity}: mean s: {means}; to mixing {ratios}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cost_models", type=Path, nargs="*", default=[FOLDER / name for name in FILES])
    parser.add_argument("--requests", type=int, default=1000, help="requests per run")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    devices = []
    for path in args.cost_models:
        file = CostModelFile.model_validate_json(path.read_text())
        bench = Bench(file.cost_model.forward)
        shown = f"{file.device}: {file.path}"
        print(f"{shown}: {bench.capacity:.2f} images/s without adapters, row cap {bench.row_cap}", flush=True)
        cases = measured(bench, args.requests, lambda line: print(line, flush=True))
        devices.append(
            {
                "device": shown,
                "adapted": file.cost_model.forward.adapted,
                "row_cap": bench.row_cap,
                "plain_images_per_s": round(bench.capacity, 3),
                "cases": cases,
            }
        )
    if args.output is not None:
        of_machine = new_results("adapter_mixes", {}, [])
        written = {
            "date": of_machine.date,
            "devices": "simulated",
            "versions": of_machine.versions,
            "adapters": NUM_ADAPTERS,
            "rank": RANK,
            "max_rank": MAX_RANK,
            "requests": args.requests,
            "runs": RUNS,
            "results": devices,
        }
        args.output.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
