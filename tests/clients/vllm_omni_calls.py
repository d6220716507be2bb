"""vLLM-Omni's benchmark of diffusion models."""

import json
from pathlib import Path

from benchmark import metrics, unpacked

PROFILES = [
    {"width": 128, "height": 128, "num_inference_steps": 4, "weight": 0.5},
    {"width": 256, "height": 192, "num_inference_steps": 2, "weight": 0.5},
]
SCRIPT = "*/benchmarks/diffusion/diffusion_benchmark_serving.py"


def arguments(url: str, *more: str) -> list[str]:
    given = ["--base-url", url, "--backend", "openai", "--task", "t2i", "--dataset", "random"]
    return [*given, "--num-prompts", "3", *more]


def test_with_the_model_that_it_asks_for_by_itself(url: str, tmp_path: Path) -> None:
    size = ["--width", "128", "--height", "128", "--num-inference-steps", "4", "--seed", "5"]
    measured = metrics(unpacked(SCRIPT), tmp_path, *arguments(url, *size))
    assert (measured["completed_requests"], measured["failed_requests"]) == (3, 0)


def test_a_mix_of_sizes_at_once(url: str, tmp_path: Path) -> None:
    mix = ["--random-request-config", json.dumps(PROFILES), "--max-concurrency", "3"]
    given = arguments(url, *mix, "--model", "shapes", "--enable-negative-prompt", "--request-rate", "5")
    measured = metrics(unpacked(SCRIPT), tmp_path, *given)
    assert (measured["completed_requests"], measured["failed_requests"]) == (3, 0)


def test_the_size_that_it_asks_for_by_itself_is_beyond_the_embedded_models_limits(
    url: str, tmp_path: Path
) -> None:
    measured = metrics(unpacked(SCRIPT), tmp_path, *arguments(url))
    assert (measured["completed_requests"], measured["failed_requests"]) == (0, 3)
