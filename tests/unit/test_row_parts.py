"""A forward whose rows are split among cores gives the same as one forward of all rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from deployments.engine.conditions import Conditions, random_conditions
from deployments.engine.models import UNet
from deployments.engine.row_parts import RowParts


def random_inputs(unet: UNet, rows: int) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
    torch.manual_seed(rows)
    timesteps = 1 + 998 * torch.rand(rows)
    latents = torch.randn(rows, unet.shape.latent_channels, 16, 16)
    return latents, timesteps, random_conditions(rows, (16, 16), unet.shape)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("name", ["shapes", "sdxl"])
@torch.inference_mode()
def test_rows_in_parts_are_predicted_as_together(
    load_model: Callable[..., Any], name: str, rows: int
) -> None:
    unet = load_model(name).unet
    inputs = random_inputs(unet, rows)
    torch.testing.assert_close(RowParts(unet)(*inputs), unet(*inputs), rtol=1e-4, atol=1e-4)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("rows", [4, 7])
@torch.inference_mode()
def test_a_rows_bits_do_not_depend_on_its_place(load_model: Callable[..., Any], rows: int) -> None:
    unet = load_model("shapes").unet
    latents, timesteps, conditions = random_inputs(unet, rows)
    order = torch.arange(rows).roll(rows // 2)
    parts = RowParts(unet)
    reordered = parts(latents[order], timesteps[order], conditions.take(order))
    assert torch.equal(reordered, parts(latents, timesteps, conditions)[order])
