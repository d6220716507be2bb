"""SGLang's benchmark of diffusion models."""

import json
from pathlib import Path

from benchmark import metrics

SCRIPT = Path(__file__).with_name("sglang_bench_serving.py")
PROFILES = [
    {"width": 128, "height": 128, "num_inference_steps": 4, "num_outputs_per_prompt": 2, "weight": 0.5},
    {"width": 256, "height": 192, "num_inference_steps": 2, "weight": 0.5},
]


def arguments(url: str, *more: str) -> list[str]:
    given = ["--base-url", url, "--task", "text-to-image", "--dataset", "random", "--num-prompts", "3"]
    return [*given, *more]


def test_with_the_model_and_size_that_it_asks_for_by_itself(url: str, tmp_path: Path) -> None:
    measured = metrics(SCRIPT, tmp_path, *arguments(url))
    assert (measured["completed_requests"], measured["completed_outputs"]) == (3, 3)


def test_a_mix_of_sizes_at_once(url: str, tmp_path: Path) -> None:
    mix = ["--random-request-config", json.dumps(PROFILES), "--max-concurrency", "3", "--request-rate", "5"]
    measured = metrics(SCRIPT, tmp_path, *arguments(url, *mix, "--model", "shapes"))
    assert (measured["completed_requests"], measured["failed_requests"]) == (3, 0)


def test_with_targets_and_a_negative_prompt(url: str, tmp_path: Path) -> None:
    slo = ["--slo", "--width", "128", "--height", "128", "--num-inference-steps", "4"]
    extra = ["--extra-body", json.dumps({"negative_prompt": "a circle", "seed": 3, "guidance_scale": 4})]
    measured = metrics(SCRIPT, tmp_path, *arguments(url, *slo, *extra))
    assert (measured["completed_requests"], measured["failed_requests"]) == (3, 0)
    assert "slo_attainment_rate" in measured


def test_edits_without_a_picture_are_refused(url: str, tmp_path: Path) -> None:
    """Its random requests have none."""
    measured = metrics(SCRIPT, tmp_path, *arguments(url, "--task", "image-to-image"))
    assert (measured["completed_requests"], measured["failed_requests"]) == (0, 3)
