"""AIPerf, a benchmark of servers, with image requests."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AIPERF = Path(sys.executable).with_name("aiperf")
# The embedded model's own tokenizer, because AIPerf would look for another one on the network.
TOKENIZER = Path(__file__).parents[2] / "models" / "shapes" / "tokenizer"
PROMPTS = ["a red star on a blue background", "a green circle", "a large yellow square"]


def profile(url: str, folder: Path, *more: str) -> dict[str, Any]:
    """AIPerf's output files of a run of six requests, by file name without its ending."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": prompt}) + "\n" for prompt in PROMPTS))
    done = subprocess.run(
        [
            *(AIPERF, "profile", "--url", url, "--model", "shapes", "--endpoint-type", "image-generation"),
            *("--tokenizer", TOKENIZER, "--input-file", prompts, "--custom-dataset-type", "single_turn"),
            *("--request-count", "6", "--concurrency", "2", "--ui", "none", "--no-gpu-telemetry"),
            *("--artifact-dir", folder / "artifacts", *more),
        ],
        # When told that it is offline, AIPerf takes no tokenizer from a folder.
        env={name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return {path.stem: json.loads(path.read_text()) for path in (folder / "artifacts").rglob("*.json")}


@pytest.mark.parametrize(
    "given",
    [
        ["--extra-inputs", "size:128x128", "--extra-inputs", "num_inference_steps:3"],
        ["--extra-inputs", "quality:hd", "--extra-inputs", "num_inference_steps:3"],
        ["--streaming", "--extra-inputs", "partial_images:2", "--extra-inputs", "num_inference_steps:6"],
    ],
    ids=str,
)
def test_all_requests_are_answered(url: str, tmp_path: Path, given: list[str]) -> None:
    written = profile(url, tmp_path, *given)
    measured = written["profile_export_aiperf"]
    assert measured["request_count"]["avg"] == 6
    assert not measured.get("error_request_count")


def test_it_finds_the_servers_metrics_where_it_looks(url: str, tmp_path: Path) -> None:
    written = profile(url, tmp_path, "--extra-inputs", "num_inference_steps:3")
    server = written["server_metrics_export"]
    assert server["summary"]["endpoints_successful"] == [f"{url}/metrics"]
    assert any("midstep" in name for name in server["metrics"])
