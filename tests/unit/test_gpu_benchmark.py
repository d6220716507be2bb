"""The GPU run at tiny sizes: what it needs, what it survives, and what it leaves behind."""

import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.gpu import checks, quantized
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts import FAMILIES, PARTS, Part
from benchmarks.gpu.runner import Report, Runner
from benchmarks.gpu.worker import Settings

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(repeats=1, num_inference_steps=2)
# What a machine with a GPU has, besides what these need. Newer versions of typer need pydantic.
GIVEN = ("torch", "numpy", "diffusers", "transformers", "safetensors", "huggingface_hub", "pytest")
NOT_GIVEN = {"pydantic", "pydantic-core"}
# Python runs this at the start of every process. Modules are not found, as if they were not installed.
ABSENCE = """
import sys
import time
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else super().find_spec(name, path, target)

sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture(scope="module")
def bare_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a process that finds no packages but those of GIVEN, and no GPU."""
    given, found = [*GIVEN], set()
    while given:
        name = canonicalize_name(given.pop())
        if name in found or name in NOT_GIVEN:
            continue
        found.add(name)
        needed = map(Requirement, requires(name) or ())
        given += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    absent = [
        module
        for module, names in packages_distributions().items()
        if found.isdisjoint(map(canonicalize_name, names)) and "midstep" not in names
    ]
    assert {"ray", "pydantic", "sqlalchemy", "asyncpg", "peft"} <= {*absent}
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(f"ABSENT = {absent!r}\n{ABSENCE}")
    return os.environ | {
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # tiny sizes also where there is a GPU
        # pytest would load plugins by their packages' metadata, which are still there.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_it_needs_only_what_a_machine_with_a_gpu_has(
    bare_environment: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    arguments = ["--json", str(path), "--families", "sdxl", "--repeats", "1", "--steps", "2"]
    done = run(["benchmarks.gpu", *arguments], bare_environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(path.read_text())["results"]["sdxl"]
    assert {name: part["status"] for name, part in found.items()} == {part.name: "done" for part in PARTS}
    figures = {name: part["figures"] for name, part in found.items()}
    assert figures["checks"]["fidelity in float32"]["max_difference"] < 1e-3
    same = ["captured against eager", "neighbours", "another process", "resumed"]
    assert all(figures["checks"][name]["same_bits"] for name in same)
    assert figures["adapters"]["bits"]["same_bits"]
    assert figures["adapters"]["bits"]["adapter_acts"]
    assert figures["slots"]["captured steps after a load"]["same_bits"]
    assert figures["slots"]["from a file"]["same_memory"]
    assert {"16 rows", "8 rows", "4 rows", "2 rows"} <= figures["steps"].keys()
    assert all("torchao" in reason for reason in figures["quantized"].values())


def test_the_tests_for_a_gpu_need_no_more(bare_environment: dict[str, str]) -> None:
    done = run(["pytest", "-p", "no:cacheprovider", "tests/gpu"], bare_environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"= \d+ skipped in", done.stdout), done.stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checks_compare_with_diffusers_own_pipeline(family: str) -> None:
    found = checks.fidelity(f"tiny-{family}", torch.device("cpu"))
    assert found["max_difference"] < 1e-3


def test_steps_with_fewer_bits_are_near_the_exact_ones() -> None:
    found = dict(quantized.figures(Bench.of_this_machine(SETTINGS), "sdxl"))
    assert found.keys() == {"fp8", "int8"}
    for quantization, most in (("fp8", 0.1), ("int8", 0.02)):
        assert 0 < found[quantization]["distance"] < most
        assert {"16 rows", "2 rows"} <= found[quantization].keys()


def part(name: str, limit_s: float = 600) -> Part:
    return Part(name, f"tests.device_parts:{name}", needs_s=0.0, limit_s=limit_s)


def results(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["results"]["sdxl"]
    return found


def test_what_a_part_breaks_stays_its_own(tmp_path: Path) -> None:
    report = Report(tmp_path / "results.json", {})
    names = ["breaks", "loses_the_device", "dies"]
    parts = [*map(part, names), part("succeeds"), part("hangs", limit_s=1.0)]
    Runner(report, SETTINGS, 600).run(parts, ["sdxl"])
    found = results(tmp_path / "results.json")
    statuses = {"breaks": "failed", "loses_the_device": "failed", "dies": "failed"}
    statuses |= {"succeeds": "done", "hangs": "stopped"}
    assert {name: one["status"] for name, one in found.items()} == statuses
    assert report.has_failures
    assert found["breaks"]["warnings"] == ["it is going to break"]
    assert "AttributeError: no such attribute" in found["breaks"]["reason"]
    assert "exit code 3" in found["dies"]["reason"]
    processes = {name: one["figures"]["process"] for name, one in found.items()}
    assert processes["breaks"] == processes["loses_the_device"], "an error alone costs no process"
    assert processes["succeeds"] == processes["hangs"]
    assert len({*processes.values()}) == 3
    assert not any(map(is_alive, processes.values()))


def test_parts_that_the_budget_does_not_allow_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    Runner(Report(path, {}), SETTINGS, budget_s=0.0).run(PARTS, ["sdxl"])
    found = results(path)
    assert [*found] == [part.name for part in PARTS]
    assert all(part["status"] == "skipped" for part in found.values())
    assert found["slots"]["reason"] == "it needs 20 s; 0.0 s of the budget are left"


ONE_PART = """
import sys
from pathlib import Path
from benchmarks.gpu.parts import Part
from benchmarks.gpu.runner import Report, Runner
from benchmarks.gpu.worker import Settings

path, name = sys.argv[1:]
part = Part(name, f"tests.device_parts:{name}", needs_s=0.0, limit_s=600)
Runner(Report(Path(path), {}), Settings(1, 2), 600).run([part], ["sdxl"])
"""


@pytest.mark.parametrize(
    ("name", "num_figures"), [("has_many_figures", 0), ("has_many_figures", 8), ("hangs", 1)]
)
def test_killed_at_any_moment_it_leaves_whole_results_and_no_process(
    tmp_path: Path, name: str, num_figures: int
) -> None:
    path = tmp_path / "results.json"
    command = [sys.executable, "-c", ONE_PART, path, name]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            while not path.exists() or len(figures_so_far(path, name)) < num_figures:
                assert process.poll() is None
        finally:
            process.kill()
    figures = figures_so_far(path, name)
    assert len(figures) >= num_figures
    ends_at = time.monotonic() + 60
    while "process" in figures and is_alive(figures["process"]):
        assert time.monotonic() < ends_at, "the process with the device is still there"
        time.sleep(0.01)


def figures_so_far(path: Path, name: str) -> dict[str, Any]:
    """Read while they are being written: a file that is not whole cannot be parsed."""
    figures: dict[str, Any] = results(path)[name].get("figures", {})
    return figures


def is_alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
