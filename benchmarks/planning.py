"""`midstep plan` against the application: loads at 50, 70 and 85% of its capacity, through both.

The measurements for planning (a profile, single requests, and evenly spaced ones before and after each load)
use none of these loads. The application's capacity is its own throughput in a burst of the same mix. Every
load runs several times, because a machine with other users changes within minutes.

    python -m benchmarks.planning                  the embedded model on the CPU
    python -m benchmarks.planning --simulated      a simulated device
"""

import argparse
import asyncio
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml
from ray.serve import Application

from benchmarks.engine import GUIDANCE_SCALE, PROMPTS
from benchmarks.peers.systems import PROXIES, midstep, running
from cluster.bench.load import Target, run_load
from cluster.bench.mix import Mix, plan
from cluster.bench.report import summarize
from cluster.plan.command import plan as plan_command
from cluster.plan.report import COMPARED
from cluster.plan.validation import MAX_DRIFT, Validated
from cluster.profile import profile
from deployments.engine.cost import CostModel, Curve, StageCost
from serve.app import build_app as build_midstep
from serve.checks import only_application
from serve.config.app import AppConfig
from serve.config.model import CostModelFile

# Weights of step counts.
STEPS = {4: 2, 20: 5, 30: 2, 50: 1}
MAX_ROWS = 16
WARM_UP, BURST, TIMEOUT_S = 1, 12, 600.0  # requests per step count and unit of its weight
SHAPE = (16, 16)
# Modelled, not measured: a device whose steps two cores keep up with.
SLEEPING = CostModel(
    encode=Curve(0.005, 8, 0.0005),
    forward=StageCost(((SHAPE, Curve(0.040, 2, 0.012)),)),
    decode=StageCost(((SHAPE, Curve(0.030, 1, 0.030)),)),
)
_CONFIG = "MIDSTEP_BENCHMARK_CONFIG"  # passes the configuration to the server's process


def build_app(num_threads: int) -> Application:
    return build_midstep(only_application(Path(os.environ[_CONFIG])))


def written_config(folder: Path, is_simulated: bool, num_denoisers: int) -> Path:
    """A Serve configuration with the costs of its device."""
    cost_model = folder / "cost_model.json"
    args = {
        "model": {"device": "cpu"},
        "denoiser": {
            "num_threads": 1,
            "max_rows": MAX_ROWS,
            "rows_per_forward": MAX_ROWS,
            "min_replicas": num_denoisers,
        },
        "limits": {"max_queue": 4096, "max_width": 128, "max_height": 128},
        "jobs": {"data_folder": str(folder / "data")},
    }
    if is_simulated:
        file = CostModelFile(path="models/shapes", dtype="float32", device="simulated", cost_model=SLEEPING)
    else:
        file = profile(AppConfig.model_validate(args))
    cost_model.write_text(file.model_dump_json())
    args["model"] = {
        "device": "simulated" if is_simulated else "cpu",
        "cost_model": str(cost_model),
    }
    application = {"name": "midstep", "import_path": "serve.app:build_app", "args": args}
    config = folder / "serve_config.yaml"
    config.write_text(yaml.safe_dump({"applications": [application]}))
    return config


def capacity(url: str) -> float:
    """Images/s of this mix when all requests come at once."""
    for num_of_each in (WARM_UP, BURST):
        planned = []
        for steps, weight in STEPS.items():
            mix = Mix(PROMPTS, num_inference_steps={steps: 1.0}, guidance_scales={GUIDANCE_SCALE: 1.0})
            planned += plan([0.0] * num_of_each * weight, mix, seed=steps)
        outcomes = asyncio.run(run_load(Target(url), planned, timeout_s=TIMEOUT_S))
    return summarize(outcomes).images_per_s


def misses(validated: Sequence[Validated]) -> list[str]:
    """The error of each figure of a load that was validated several times: each run, and the median of the
    runs in which the machine did not change."""
    lines = []
    for figure, name in COMPARED.items():
        steady, each = [], []
        for one in validated:
            off = 100 * (getattr(one.predicted, name) / getattr(one.measured, name) - 1)
            each.append(f"{off:+.1f}{'' if one.is_steady else '*'}")
            steady += [off] if one.is_steady else []
        median = f"{statistics.median(steady):+.1f}%" if steady else "none"
        lines.append(f"  {figure}: {median} ({', '.join(each)})")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.5, 0.7, 0.85], help="shares of the capacity"
    )
    parser.add_argument("--duration", type=float, default=75.0, help="seconds at each rate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--denoisers", type=int, default=2, help="with one core each; one if simulated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--proxy", choices=PROXIES, default="haproxy", help="haproxy, as in production, or Serve's own"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = written_config(Path(folder), args.simulated, 1 if args.simulated else args.denoisers)
        os.environ[_CONFIG] = str(config)
        with running(midstep("benchmarks.planning", args.proxy), args.denoisers) as url:
            most = capacity(url)
            print(f"{most:.2f} images/s at most; HTTP by {args.proxy}", flush=True)
            load = {
                "--duration": f"{args.duration:g}",
                "--steps": ",".join(f"{number}:{weight}" for number, weight in STEPS.items()),
                "--seed": str(args.seed),
            }
            options = [text for option in load.items() for text in option]
            rates = ",".join(f"{share * most:.3f}" for share in args.shares)
            rounds = [
                plan_command.main(
                    [str(config), "--validate", url, "--rates", rates, *options], standalone_mode=False
                )
                for _ in range(args.rounds)
            ]
        print(
            f"Predicted against measured; * where the machine changed its pace by more than {MAX_DRIFT:.0%}:"
        )
        for share, *validated in zip(args.shares, *(written.validated for written in rounds), strict=True):
            print(f"{share:.0%} of what the application does", *misses(validated), sep="\n")


if __name__ == "__main__":
    main()
