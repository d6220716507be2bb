"""A forward whose rows are shared out to cores gives what one forward of all rows gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from deployments.engine.models import UNet
from deployments.engine.row_parts import RowParts

Inputs = list[torch.Tensor | None]


def random_inputs(unet: UNet, rows: int) -> Inputs:
    generator = torch.Generator().manual_seed(rows)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, generator=generator)

    conditions: Inputs = [None, None]
    if unet.needs_time_ids:
        conditions = [draw(unet.pooled_width), torch.full((rows, 6), 64.0)]
    timesteps = 1 + 998 * torch.rand(rows, generator=generator)
    return [draw(unet.in_channels, 16, 16), timesteps, draw(77, unet.embeds_width), *conditions]


def take(inputs: Inputs, rows: torch.Tensor) -> Inputs:
    return [None if tensor is None else tensor[rows] for tensor in inputs]


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
    inputs, order = random_inputs(unet, rows), torch.arange(rows).roll(rows // 2)
    parts = RowParts(unet)
    assert torch.equal(parts(*take(inputs, order)), parts(*inputs)[order])
