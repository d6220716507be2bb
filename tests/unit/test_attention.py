"""The attention kernels that torch takes for a U-Net."""

import logging
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.random_models import SD15, SDXL
from deployments.engine.attention import sdpa_backends
from deployments.engine.model_source import ModelSource, Placement
from deployments.engine.models import load_unet

CPU = torch.device("cpu")


@pytest.mark.parametrize(("config", "sizes"), [(SD15, [40, 80, 160]), (SDXL, [64])], ids=["sd15", "sdxl"])
def test_it_is_what_torch_chooses_for_the_models_heads(config: dict[str, object], sizes: list[int]) -> None:
    with torch.device("meta"):
        module = diffusers.UNet2DConditionModel.from_config(config)
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(backend):
            assert sdpa_backends(module, CPU, torch.bfloat16) == {backend.name: sizes}


def test_a_start_says_so(model_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with sdpa_kernel(SDPBackend.MATH):
        load_unet(ModelSource(str(model_folder("sd1"))), Placement(device="cpu"))
    [record] = [record for record in caplog.records if record.name == "ray.serve"]
    assert record.message.startswith("attention: MATH for heads of [")
    assert record.message.endswith("in torch.float32")
