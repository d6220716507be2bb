"""Other servers' benchmarks, each run as the command that its users give."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def unpacked(path: str) -> Path:
    """A file of the distribution that was unpacked into this environment."""
    [found] = (Path(sys.prefix) / "unpacked").glob(path)
    return found


def metrics(script: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    """The measurements of a run, from its `--output-file`."""
    output = folder / "metrics.json"
    done = subprocess.run(
        [sys.executable, script, *arguments, "--output-file", output, "--disable-tqdm"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    measured: dict[str, Any] = json.loads(output.read_text())
    return measured
