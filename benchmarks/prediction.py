"""How well the cost model predicts: forwards of held-out row counts and sizes against their predicted times.

    python -m benchmarks.prediction

It is fitted as at a replica's start, then a random mix of every row count runs through the engine's own step.
"""

import argparse
import random
import statistics
from functools import partial
from pathlib import Path

import torch

from benchmarks.engine import seconds
from deployments.engine.cost import counts_to_measure, measure_shapes
from deployments.engine.device_step import rehearse, step_runner
from deployments.engine.models import ModelSource, Placement, load_model_info, load_unet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "models" / "shapes"))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--max-rows", type=int, default=16)
    parser.add_argument("--forwards", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source = ModelSource(args.model)
    info = load_model_info(source)
    unet = load_unet(source, Placement(dtype=args.dtype))
    work = partial(rehearse, unet, step_runner(unet))
    side = info.default_size // info.scale_factor
    shapes = [(side, side), (side, 3 * side // 2)]
    cost = measure_shapes(work, shapes, counts_to_measure(args.max_rows))
    print(cost.table("rows"))

    rng = random.Random(1)
    for shape in shapes:
        for rows in range(1, args.max_rows + 1):
            work(shape, rows)  # warms up, as in a server that has run for a while
    misses = []
    for _ in range(args.forwards):
        shape, rows = rng.choice(shapes), rng.randint(1, args.max_rows)
        measured_s = seconds(partial(work, shape, rows))
        misses.append(abs(cost.seconds(shape, rows) / measured_s - 1))
    print(
        f"{args.forwards} forwards of 1 to {args.max_rows} rows: predicted misses measured by "
        f"{100 * statistics.median(misses):.1f}% at the median, "
        f"{100 * statistics.quantiles(misses, n=20)[18]:.1f}% at the 95th percentile"
    )


if __name__ == "__main__":
    main()
