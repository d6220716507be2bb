"""The bytes that live at the same time, counted on meta tensors."""

import torch
from torch import nn
from torch.nn import functional as F

from deployments.engine.peak_memory import PeakMemory

META = torch.device("meta")
KIB = 1024


def given(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.uint8, device=META)


def test_what_is_there_at_once_counts_and_what_is_gone_does_not() -> None:
    inputs = given(KIB)
    with PeakMemory() as memory:
        first = inputs + 1
        for _ in range(3):
            second = first + 1
            del second
        third = first + 1
    assert memory.peak_bytes == first.nbytes + third.nbytes == 2 * KIB


def test_views_and_changes_in_place_take_nothing() -> None:
    inputs = given(KIB)
    with PeakMemory() as memory:
        views = [inputs.view(32, 32).T, inputs[:7], inputs.add_(1)]
    assert memory.peak_bytes == 0
    assert len(views) == 3


def test_a_composite_operation_counts_with_its_intermediate_values() -> None:
    """On CUDA a group norm copies inputs that are in channels-last. Beside them are mean and deviation."""
    inputs = torch.empty(1, 32, 16, 16, device=META).to(memory_format=torch.channels_last)
    with torch.inference_mode(), PeakMemory() as memory:
        outputs = F.group_norm(inputs, 4)
    assert memory.peak_bytes == inputs.nbytes + outputs.nbytes + 2 * 4 * inputs.itemsize


def test_attention_makes_no_matrix_of_scores() -> None:
    query = torch.empty(1, 1, 4096, 64, device=META)
    with torch.inference_mode(), PeakMemory() as memory:
        F.scaled_dot_product_attention(query, query, query)
    assert memory.peak_bytes == query.nbytes


def test_a_convolution_copies_inputs_of_another_memory_format() -> None:
    layer = nn.Conv2d(4, 8, 3, padding=1, device=META).to(memory_format=torch.channels_last)
    inputs = torch.empty(1, 4, 32, 32, device=META)
    with torch.inference_mode(), PeakMemory() as memory:
        outputs = layer(inputs)
    assert memory.peak_bytes == inputs.nbytes + outputs.nbytes
    like_weights = inputs.to(memory_format=torch.channels_last)
    with torch.inference_mode(), PeakMemory() as memory:
        outputs = layer(like_weights)
    assert memory.peak_bytes == outputs.nbytes
