"""How well the cost model predicts forwards with row counts that it was not fitted to, in two sizes.

    python -m benchmarks.prediction

The model is fitted as at a replica's start, to 1, 2, 4, ... rows of each size.
"""

import argparse
import random
import statistics
from functools import partial
from pathlib import Path

import torch

from benchmarks.engine import seconds
from deployments.engine.cost import counts_to_measure, measure_shapes
from deployments.engine.device_step import step_runner, warm_up
from deployments.engine.model_source import ModelSource, Placement, load_model_info
from deployments.engine.models import load_unet


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
    side = info.default_height // info.scale_factor
    shapes = [(side, side), (side, 3 * side // 2)]
    fitted = counts_to_measure(args.max_rows)
    held_out = [count for count in range(1, args.max_rows) if count not in fitted]
    work = partial(warm_up, unet.shape, step_runner(unet, shapes))
    cost = measure_shapes(work, shapes, fitted)
    print(cost.table("rows"))

    rng = random.Random(1)
    for shape in shapes:
        for rows in held_out:
            work(shape, rows)  # warm-up, as in a server that has run for a while
    misses = []
    for _ in range(args.forwards):
        shape, rows = rng.choice(shapes), rng.choice(held_out)
        measured_s = seconds(partial(work, shape, rows))
        misses.append(abs(cost.seconds(shape, rows) / measured_s - 1))
    print(
        f"{args.forwards} forwards of up to {args.max_rows} rows: predicted misses measured by "
        f"{100 * statistics.median(misses):.1f}% at the median, "
        f"{100 * statistics.quantiles(misses, n=20)[18]:.1f}% at the 95th percentile"
    )


if __name__ == "__main__":
    main()
