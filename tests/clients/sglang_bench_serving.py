"""Runs SGLang's script `bench_serving.py` unmodified, with its command line, and without SGLang's engine.

The script imports SGLang's datasets, which are unmodified too, and three modules for logging, tables and
addresses that need torch and more. These three are replaced by modules with only what the script uses.
"""

import logging
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from benchmark import unpacked

PACKAGE = "sglang.multimodal_gen"


def stand_in(name: str, **contents: Any) -> None:
    """Puts a module in place of one of SGLang's, with its parent packages."""
    parent = ""
    for part in name.split("."):
        parent = f"{parent}.{part}".lstrip(".")
        module = sys.modules.setdefault(parent, ModuleType(parent))
        module.__path__ = []
    vars(sys.modules[name]).update(contents)


benchmarks: Path = unpacked("sglang/multimodal_gen/benchmarks")
stand_in(
    f"{PACKAGE}.runtime.utils.logging_utils",
    init_logger=logging.getLogger,
    configure_logger=lambda args: logging.basicConfig(level=args.log_level),
)
stand_in(
    f"{PACKAGE}.test.test_utils",
    print_divider=lambda length: print("-" * length),
    print_value_formatted=print,
)
stand_in("sglang.srt.utils.network", NetworkAddress=SimpleNamespace)
stand_in(f"{PACKAGE}.benchmarks")
sys.modules[f"{PACKAGE}.benchmarks"].__path__ = [str(benchmarks)]

runpy.run_path(str(benchmarks / "bench_serving.py"), run_name="__main__")
