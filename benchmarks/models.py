"""What many models on the same GPUs cost in latency: a trace of many checkpoints against all its requests
for one model, simulated as `midstep plan` does, with the modelled costs of an H200 with SDXL.

    python -m benchmarks.models trace.csv.gz --output FILE

A load of 60% is the rate at which full forwards would take 60% of the GPUs' time. Arrivals are those of the
trace, sped up, or a Poisson process's with the requests in the trace's order: a real trace has quiet hours
and bursts, whose queues hide what the models cost.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.bench.answers import Kind
from cluster.bench.arrivals import trace
from cluster.bench.mix import Mix, PlannedRequest, plan_trace
from cluster.bench.report import summarize
from cluster.plan.devices import Sharing
from cluster.plan.model import Model
from cluster.plan.simulation import Replicas, Simulation
from cluster.plan.stages import Overheads
from deployments.engine.model_source import load_model_info
from serve.config.app import AppConfig

ENOUGH = 1_000_000  # nothing is refused
LOADS, SLOTS = (0.3, 0.6, 0.8), (2, 5, 20)
DISK_GB_PER_S, SDXL_GB = 3.0, 5.135


@dataclass(frozen=True)
class Run:
    """One simulation. slots: of each GPU; None for one model instead of all"""

    arrivals: str
    load: float
    slots: int | None
    load_s: float
    latency_mean_s: float
    latency_p50_s: float
    latency_p95_s: float
    num_loads: int
    waited_for_load: float


def modelled(load_s: float | None = None) -> Model:
    """SDXL on H200s, with the seconds of a load of the costs or other ones."""
    sections = {
        "model": {
            "path": "cluster/devices/sdxl",
            "device": "simulated",
            "cost_model": "cluster/devices/h200-sdxl.json",
        },
        "limits": {"max_queue": ENOUGH, "max_wait_s": ENOUGH},
    }
    config = AppConfig.model_validate(sections)
    cost = config.model.known_cost()
    assert cost is not None
    if load_s is not None:
        cost = replace(cost, load_s=load_s)
    return Model(config, load_model_info(config.model.source()), cost, Sharing.NOTHING, Overheads())


def with_slots(model: Model, slots: int) -> Model:
    denoiser = model.config.denoiser.model_copy(update={"max_models": slots})
    return replace(model, config=model.config.model_copy(update={"denoiser": denoiser}))


def at_load(
    planned: Sequence[PlannedRequest], work_s: float, load: float, gpus: int, arrivals: str
) -> list[PlannedRequest]:
    """The requests at the rate that is this load. work_s: of all of them"""
    span_s = work_s / (load * gpus)
    if arrivals == "trace":
        first, last = planned[0].due_s, planned[-1].due_s
        return [replace(one, due_s=(one.due_s - first) * span_s / (last - first)) for one in planned]
    rng, due_s, spaced = random.Random(1), 0.0, []
    for one in planned:
        due_s += rng.expovariate(len(planned) / span_s)
        spaced.append(replace(one, due_s=due_s))
    return spaced


def simulated(
    model: Model, planned: Sequence[PlannedRequest], gpus: int, arrivals: str, load: float, slots: int | None
) -> Run:
    if slots is None:
        planned = [replace(one, model=None) for one in planned]
    else:
        model = with_slots(model, slots)
    result = Simulation(model, Replicas(1, gpus, 1)).run(planned)
    summary = summarize(result.outcomes)
    assert summary.counts == {Kind.COMPLETED: len(planned)}, summary.counts
    assert summary.latency_mean_s
    assert summary.latency_p50_s
    assert summary.latency_p95_s
    return Run(
        arrivals,
        load,
        slots,
        model.cost.load_s,
        summary.latency_mean_s,
        summary.latency_p50_s,
        summary.latency_p95_s,
        result.num_loads,
        result.waited_for_load,
    )


def measured(planned: Sequence[PlannedRequest], gpus: int, arrivals: str, load: float) -> list[Run]:
    """One model, then all with ever more slots. At 60% also with loads from a disk."""
    model = modelled()
    loaded = at_load(planned, sum(map(model.work_s, planned)), load, gpus, arrivals)
    runs = [simulated(model, loaded, gpus, arrivals, load, slots) for slots in (None, *SLOTS)]
    if load == LOADS[1]:
        from_disk = modelled(SDXL_GB / DISK_GB_PER_S + model.cost.load_s * 10 / 35)
        runs += [simulated(from_disk, loaded, gpus, arrivals, load, slots) for slots in SLOTS]
    alone_s = runs[0].latency_mean_s
    for run in runs:
        name = "one model" if run.slots is None else f"{run.slots:>2} slots"
        print(
            f"{arrivals}, {load:.0%}, {name}, loads of {run.load_s:.2f} s: mean {run.latency_mean_s:.2f} s, "
            f"{100 * (run.latency_mean_s / alone_s - 1):+.1f}%, p95 {run.latency_p95_s:.1f} s; "
            f"{run.num_loads} loads, {run.waited_for_load:.1%} waited for one",
            flush=True,
        )
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--start", type=int, default=3000, help="first request of the trace")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--arrivals", nargs="+", choices=("poisson", "trace"), default=["poisson", "trace"])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    planned = plan_trace(trace(args.trace, speed_up=1.0), Mix(), seed=0)[args.start :][: args.requests]
    counts = Counter(one.model for one in planned)
    runs = [
        run
        for arrivals in args.arrivals
        for load in args.loads
        for run in measured(planned, args.gpus, arrivals, load)
    ]
    written: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "devices": "simulated devices: modelled H200 (60% of 790 TFLOP/s), not measured",
        "gpus": args.gpus,
        "start": args.start,
        "requests": len(planned),
        "models": len(counts),
        "top_model": counts.most_common(1)[0][1] / len(planned),
        "runs": [run.__dict__ for run in runs],
    }
    if args.output is not None:
        args.output.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
