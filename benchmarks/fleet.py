"""Throughput of many denoisers against that of one, which shows the cost of the rest of the application. Each
denoiser has a GPU that its node only claims to have, and devices are simulated. Exit status 1 below 95%.

    python -m benchmarks.fleet
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine import GUIDANCE_SCALE, PROMPTS
from cluster.bench.arrivals import constant
from cluster.bench.load import RequestOutcome
from cluster.bench.mix import Mix, plan
from cluster.local_cluster import local_cluster
from cluster.rehearsal.rehearsal import rehearse
from deployments.engine.cost import CostModel, Curve, StageCost
from serve.config.app import AppConfig
from serve.config.model import CostModelFile

STEPS, ROWS, GPUS_PER_NODE = 20, 8, 8
SHAPE = (16, 16)
# A forward of four guided images takes 0.5 s: 0.4 images/s, so that two cores keep up with sixteen denoisers.
COST = CostModel(
    encode=Curve(0.01, 64, 0.0),
    forward=StageCost(((SHAPE, Curve(0.1, 1, 0.05)),)),
    decode=StageCost(((SHAPE, Curve(0.02, 1, 0.02)),)),
)
CAPACITY = ROWS / 2 / (STEPS * COST.forward.seconds(SHAPE, ROWS))  # images/s of a denoiser
AIM = 0.95  # share of perfect scaling
OFFERED = 1.2  # share of CAPACITY, so that no denoiser is ever idle


def config(num_denoisers: int, folder: Path) -> AppConfig:
    def stage(num_gpus: float, num_replicas: int) -> dict[str, Any]:
        return {"num_gpus": num_gpus, "min_replicas": num_replicas}

    cost_model = folder / "cost_model.json"
    file = CostModelFile(path="models/shapes", dtype="float32", device="modelled", cost_model=COST)
    cost_model.write_text(file.model_dump_json())
    return AppConfig.model_validate(
        {
            "model": {"device": "simulated", "cost_model": str(cost_model)},
            "encoder": stage(0.1, 1),
            "denoiser": stage(0.8, num_denoisers) | {"max_rows": ROWS, "max_ongoing_requests": 16},
            "decoder": stage(0.1, 1),
            "limits": {"max_queue": 10_000, "max_wait_s": 1000, "max_width": 128, "max_height": 128},
        }
    )


def images_per_s(outcomes: Sequence[RequestOutcome], start_s: float, end_s: float) -> float:
    """Images per second that were completed between the two times."""
    ended = [outcome.answer.ended_s for outcome in outcomes if outcome.answer.num_images]
    return sum(start_s <= at_s < end_s for at_s in ended) / (end_s - start_s)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--denoisers", type=int, default=16)
    parser.add_argument("--warmup", type=float, default=30.0, help="uncounted seconds at the start")
    parser.add_argument("--duration", type=float, default=100.0, help="counted seconds")
    args = parser.parse_args()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    mix = Mix(prompts=PROMPTS, num_inference_steps={STEPS: 1.0}, guidance_scales={GUIDANCE_SCALE: 1.0})
    end_s = args.warmup + args.duration
    measured = {}
    with tempfile.TemporaryDirectory() as folder, local_cluster() as cluster:
        for _ in range(-(-args.denoisers // GPUS_PER_NODE)):
            cluster.add_node(num_gpus=GPUS_PER_NODE, num_cpus=0)
        for number in (1, args.denoisers):
            requests = plan(constant(OFFERED * CAPACITY * number, end_s), mix, seed=1)
            rehearsal = rehearse(config(number, Path(folder)), requests, 2 * end_s, lambda _: None)
            measured[number] = images_per_s(rehearsal.outcomes, args.warmup, end_s)
            share = measured[number] / (number * CAPACITY)
            print(
                f"{number} denoisers: {measured[number]:.3f} images/s, {share:.1%} of what their devices do",
                flush=True,
            )
    ratio = measured[args.denoisers] / (args.denoisers * measured[1])
    print(f"{args.denoisers} denoisers do {ratio:.1%} of {args.denoisers} times what one does")
    if ratio < AIM:
        sys.exit(f"which is less than {AIM:.0%}")


if __name__ == "__main__":
    main()
