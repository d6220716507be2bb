"""The command line; see the package."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import benchmarks.gpu
from benchmarks.gpu.parts import COMPILED, FAMILIES, PARTS
from benchmarks.gpu.runner import Report, Runner
from benchmarks.gpu.worker import Settings


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--budget-s", type=float, default=540, help="seconds of the whole run")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--compile", action="store_true", help="also measure compiled steps, at the end")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each figure")
    parser.add_argument("--steps", type=int, default=20, help="steps of the pictures that pipelines make")
    args = parser.parse_args()
    settings = Settings(args.repeats, args.steps)
    parts = [part for part in PARTS if part.name in args.parts] + [COMPILED] * args.compile
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    report = Report(args.json, asdict(settings) | {"budget_s": args.budget_s})
    Runner(report, settings, args.budget_s).run(parts, args.families)
    return 1 if report.has_failures else 0


if __name__ == "__main__":
    sys.exit(main())
