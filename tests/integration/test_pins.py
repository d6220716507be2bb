"""Both sets of pinned versions fit together, with every promised Python. Only metadata is downloaded."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve.config.model import PROJECT_FOLDER

UV = shutil.which("uv", path=str(Path(sys.executable).parent))
# torch brings and pins its own part of CUDA, and any setuptools will do for it.
OF_TORCH = ("cuda-", "nvidia-", "triton==", "setuptools==")


def pins(name: str) -> set[str]:
    lines = (PROJECT_FOLDER / name).read_text().splitlines()
    return {line.lower().replace("_", "-") for line in lines if "==" in line and not line.startswith("#")}


@pytest.mark.skipif(UV is None, reason="uv is not installed")
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("attention", ["sdpa", "xformers"])
def test_the_pinned_versions_fit_together(attention: str, python: str, tmp_path: Path) -> None:
    assert UV is not None
    own = f"constraints-{attention}.txt"
    options = ["--all-extras", "--python-version", python, "--python-platform", "x86_64-manylinux_2_28"]
    quiet = ["--quiet", "--no-header", "--no-annotate", "--cache-dir", str(tmp_path)]
    done = subprocess.run(
        [UV, "pip", "compile", "pyproject.toml", "--constraint", own, *options, *quiet],
        cwd=PROJECT_FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    if "Failed to fetch" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    resolved = {line.partition(" ")[0] for line in done.stdout.splitlines()}
    assert pins(own) < resolved
    assert {one for one in resolved - pins(own) if not one.startswith(OF_TORCH)} <= pins("constraints.txt")
