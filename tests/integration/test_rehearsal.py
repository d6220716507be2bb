"""`midstep rehearse` as a user types it, on a separate Ray."""

import json
import os
import subprocess
from pathlib import Path

from tests.integration.conftest import MIDSTEP

CONFIG = "cluster/rehearsal/sdxl-16gpu.yaml"
OPTIONS = "--gpus 2 --gpus-per-node 1 --arrivals constant --rate 1 --duration 10 --steps 5 --slo-s 60"


def test_a_rehearsal_serves_its_load_on_simulated_gpus(tmp_path: Path) -> None:
    command = [MIDSTEP, "rehearse", CONFIG, *OPTIONS.split()]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [*command, "--output", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "simulated devices: modelled H200" in done.stdout
    written = json.loads((tmp_path / "rehearsal.json").read_text())
    [results] = written["results"]
    [summary] = results["summaries"]
    assert summary["counts"] == {"completed": 10}
    # A denoiser, an encoder and a decoder, from the first request to the last answer.
    assert written["gpu_seconds"]["rehearsal"] >= 0.8 * 9
    assert sum(written["series"]["rehearsal"]["arrivals_per_s"]) > 0
    assert (tmp_path / "rehearsal.png").read_bytes().startswith(b"\x89PNG")
