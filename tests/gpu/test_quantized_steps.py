"""Captured steps of quantized models on CUDA."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.random_models import capture_failed
from deployments.engine.device_step import CapturedSteps, EagerSteps
from deployments.engine.model_source import Placement
from tests.conftest import LoadedModel, finish

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_a_captured_step_gives_what_an_eager_one_gives(
    load_model: Callable[..., LoadedModel], quantization: str
) -> None:
    """And both are near what the model gives without quantization."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    if quantization == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8")

    def drawn(quantization: str, is_captured: bool) -> torch.Tensor:
        model = load_model("shapes", Placement("cuda", "bfloat16", quantization=quantization))
        steps = (
            CapturedSteps(model.unet, [(16, 16)], capture_failed) if is_captured else EagerSteps(model.unet)
        )
        engine = model.engine(steps)
        engine.add(model.request("one"))
        return finish(engine)["one"]

    captured, eager, exact = (
        drawn(quantization, True),
        drawn(quantization, False),
        drawn("none", False),
    )
    assert (captured - eager).norm() < 0.02 * eager.norm()
    assert 0 < (eager - exact).norm() < 0.2 * exact.norm()
