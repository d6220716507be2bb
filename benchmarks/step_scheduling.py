"""Step-level against static batching, simulated: only the time of forwards on one device.

    python -m benchmarks.step_scheduling                        modelled: an H200 with SD 1.5 and with SDXL
    python -m benchmarks.step_scheduling cost_model.json        measured by `midstep profile`

Static batches are those of `@serve.batch` in benchmarks/peers: the largest group with equal step counts goes
next and runs to its end. Step by step, a forward takes as many requests as fit into a row cap, or as many as
the step scheduler finds worth it. All get the same arrivals, at shares of the capacity of static batches.
"""

import argparse
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.peers.__main__ import STEPS
from benchmarks.peers.diffusers_pipeline import MAX_IMAGES_PER_CALL
from benchmarks.peers.ray_serve_batch import next_group
from cluster.bench.arrivals import poisson
from cluster.devices.h200 import FILES, FOLDER
from deployments.engine.adapters import AdapterUse, bank_rows
from deployments.engine.cost import StageCost, padded
from deployments.engine.messages import DenoiseRequest, PromptEmbeds, TokenCount
from deployments.engine.step_scheduler import (
    Group,
    StepScheduler,
    num_rows,
    pick_members,
    rank_of,
    unloaded_s,
)
from serve.config.model import CostModelFile

BURST = 400  # requests at once, to find a policy's capacity
ROW_CAPS = (16, 32, 64)
_NOTHING = torch.empty(0)
_WITH_GUIDANCE = PromptEmbeds(_NOTHING, _NOTHING, _NOTHING, _NOTHING, TokenCount(0, 0), TokenCount(0, 0))


class _Request(DenoiseRequest):
    """A request whose calls all have guidance: the general case takes most of a simulation's time."""

    def rows_at(self, call: int) -> int:
        return 2

    def rows_left(self, first_call: int = 0) -> int:
        return 2 * (self.num_calls - first_call)


def _request(steps: int, adapters: tuple[AdapterUse, ...]) -> DenoiseRequest:
    return _Request(
        "",
        _WITH_GUIDANCE,
        height=0,
        width=0,
        latent_shape=(0, 0),
        sampler="",
        num_inference_steps=steps,
        num_calls=steps,
        guidance_scale=5.0,
        seed=0,
        adapters=adapters,
    )


@dataclass(eq=False, slots=True)
class Denoising:
    """The fields of a request that the step scheduler reads."""

    request: DenoiseRequest
    group: Group
    arrival: float
    unloaded_s: float
    call: int = 0

    @property
    def calls_left(self) -> int:
        return self.request.num_calls - self.call


# Picks the present requests that go next, and for how many forwards.
Policy = Callable[[Sequence[Denoising], float], tuple[Sequence[Denoising], int]]


class Device:
    """A device whose forwards take as long as a cost model says."""

    def __init__(self, cost: StageCost) -> None:
        (shape, _), *_ = cost.curves
        self.group = Group(shape, deterministic=False)
        self._cost = cost

    def seconds(self, group: Group, rows: int, rank: int = 0) -> float:
        return self._cost.seconds(group.latent_shape, padded(rows, self._cost.padded_to), rank)

    def latencies_s(self, policy: Policy, arrivals: Iterable[tuple[float, int]]) -> list[float]:
        """arrivals: (time, number of steps), in order of time"""
        return self.run(policy, [self.denoising(arrival, steps) for arrival, steps in arrivals])

    def run(self, policy: Policy, items: Sequence[Denoising]) -> list[float]:
        """Latencies in seconds, by time of the end. items: in order of arrival"""
        to_come = list(reversed(items))
        present: list[Denoising] = []
        latencies_s, now = [], 0.0
        while to_come or present:
            if not present:
                now = max(now, to_come[-1].arrival)
            while to_come and to_come[-1].arrival <= now:
                present.append(to_come.pop())
            members, num_forwards = policy(present, now)
            now += num_forwards * self.seconds(self.group, num_rows(members), rank_of(members))
            for item in members:
                item.call += num_forwards
                if item.calls_left == 0:
                    present.remove(item)
                    latencies_s.append(now - item.arrival)
        return latencies_s

    def denoising(
        self,
        arrival: float,
        steps: int,
        adapters: tuple[AdapterUse, ...] = (),
        group: Group | None = None,
    ) -> Denoising:
        """group: another one than that of all requests"""
        request, group = _request(steps, adapters), group or self.group
        alone_s = unloaded_s(request, partial(self.seconds, group, rank=bank_rows(adapters)))
        return Denoising(request, group, arrival, alone_s)

    def policies(self) -> Mapping[str, Policy]:
        """All policies, the static one first."""

        def static(present: Sequence[Denoising], now: float) -> tuple[Sequence[Denoising], int]:
            members = next_group(present, lambda item: item.request.num_calls)
            return members, members[0].calls_left

        def as_many_as_fit(row_cap: int) -> Policy:
            return lambda present, now: (pick_members(present, row_cap), 1)

        scheduler = StepScheduler(lambda group: max(ROW_CAPS), self.seconds)
        return {
            f"static batches of up to {MAX_IMAGES_PER_CALL} images": static,
            **{f"as many as fit into {rows} rows": as_many_as_fit(rows) for rows in ROW_CAPS},
            "the step scheduler": lambda present, now: (scheduler.admit(present, now), 1),
        }


def steps_of(count: int, seed: int) -> list[int]:
    # A separate stream: with the arrivals' stream, long requests would follow long gaps.
    return random.Random(f"steps {seed}").choices(list(STEPS), list(STEPS.values()), k=count)


def measure(
    device: Device, policy: Policy, rate: float, arguments: argparse.Namespace
) -> tuple[float, float]:
    """Mean and 95th percentile in seconds, each the mean of several runs."""
    figures = []
    for seed in range(arguments.runs):
        times = poisson(rate, arguments.requests / rate, seed)
        latencies_s = device.latencies_s(policy, zip(times, steps_of(len(times), seed), strict=True))
        figures.append((statistics.mean(latencies_s), statistics.quantiles(latencies_s, n=20)[-1]))
    mean_s, p95_s = (statistics.mean(column) for column in zip(*figures, strict=True))
    return mean_s, p95_s


def compare(file: CostModelFile, arguments: argparse.Namespace) -> Table:
    device = Device(file.cost_model.forward)
    burst = [(0.0, steps) for steps in steps_of(BURST, seed=0)]
    table = Table("", "images/s", *(f"{load:.0%}: mean, p95" for load in arguments.loads))
    table.title = f"{file.device}: {file.path}"
    capacity = 0.0
    static: list[tuple[float, float]] = []
    for name, policy in device.policies().items():
        images_per_s = BURST / max(device.latencies_s(policy, burst))
        capacity = capacity or images_per_s
        figures = [measure(device, policy, load * capacity, arguments) for load in arguments.loads]
        static = static or figures
        cells = [
            f"{mean_s:.2f}, {p95_s:.2f} s ({of_mean / mean_s:.2f}, {of_p95 / p95_s:.2f})"
            for (mean_s, p95_s), (of_mean, of_p95) in zip(figures, static, strict=True)
        ]
        table.add_row(name, f"{images_per_s:.2f}", *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cost_models", type=Path, nargs="*", default=[FOLDER / name for name in FILES])
    parser.add_argument(
        "--loads", type=float, nargs="+", default=[0.5, 0.8, 0.9], help="shares of static capacity"
    )
    parser.add_argument("--requests", type=int, default=3000, help="requests per run")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    console = Console(width=160)
    console.print("Simulated. In brackets how many times better than static batches.", highlight=False)
    for path in arguments.cost_models:
        console.print(compare(CostModelFile.model_validate_json(path.read_text()), arguments))


if __name__ == "__main__":
    main()
