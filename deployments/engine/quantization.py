"""Weights in fewer bits, by torchao: the linear layers of a U-Net's transformers, where most of its work is.

Each output channel of a weight has a scale of its own, and each token of an input has one that is worked out
in the forward. So a row's bits do not depend on the rows beside it. What is not finite stays so.

All other layers keep their precision: embeddings, the first and the last layer, and convolutions, since
torchao would give those one scale for all rows of a forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchao.float8.inference import Float8MMConfig
from torchao.quantization import Float8Tensor, Int8Tensor, PerRow
from torchao.quantization.quantize_.common import KernelPreference
from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

from deployments.engine.transfers import copy

_LARGEST = 127  # of an int8 value, up and down
# A token's largest value counts as at least this: SDXL's empty negative prompt is zeros, and 0 / 0 is NaN.
_SMALLEST = 1e-6
_FEWEST_TOKENS = 32  # torch's integer product on CUDA refuses 16 and fewer
_MULTIPLE = 16  # of inputs and outputs, as the products on CUDA take them


class Int8Weight(Int8Tensor):  # type: ignore[misc]
    """torchao's int8 tensor with a product of its own. torchao's prints its input to see whether it is a fake
    tensor, which waits for the device, and which a CUDA graph cannot capture.
    """


@Int8Weight.implements(torch.ops.aten.linear.default)  # type: ignore[untyped-decorator]
@Int8Weight.implements_torch_function(F.linear)  # type: ignore[untyped-decorator]
def _linear(_func: Any, _types: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    return _product(*args, **kwargs)


def _product(input: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same as `F.linear`."""
    tokens = input.flatten(0, -2)  # [tokens, inputs]
    scales = tokens.abs().amax(1, keepdim=True).float().clamp(min=_SMALLEST) / _LARGEST
    rounded = (tokens / scales).round().to(torch.int8)
    if len(tokens) < _FEWEST_TOKENS:
        rounded = F.pad(rounded, (0, 0, 0, _FEWEST_TOKENS - len(tokens)))
    sums = torch._int_mm(rounded, weight.qdata.t())[: len(tokens)]
    outputs: torch.Tensor = (sums * scales * weight.scale.flatten()).to(input.dtype)
    if bias is not None:
        outputs += bias
    return outputs.view(*input.shape[:-1], -1)


def quantize(module: nn.Module, quantization: str) -> None:
    """Rounds the weights of a U-Net's transformers in place. quantization: int8 or fp8"""
    for name, layer in module.named_modules():
        is_even = isinstance(layer, nn.Linear) and not any(size % _MULTIPLE for size in layer.weight.shape)
        if ".attentions." in name and is_even:
            layer.weight = nn.Parameter(_rounded(layer.weight, quantization), requires_grad=False)


def fill(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Copies values into a tensor of a module, rounded if the tensor is quantized."""
    match tensor:
        case Int8Weight():
            values = _rounded(values.to(tensor.device, tensor.dtype), "int8")
        case Float8Tensor():
            values = _rounded(values.to(tensor.device, tensor.dtype), "fp8")
    copy(tensor, values)


def _rounded(weight: torch.Tensor, quantization: str) -> torch.Tensor:
    """weight: [outputs, inputs]"""
    rows, kernel = PerRow(), KernelPreference.TORCH
    rounded: torch.Tensor
    if quantization == "int8":
        rounded = Int8Weight.from_hp(weight, rows)
    else:
        rounded = Float8Tensor.from_hp(
            weight,
            granularity=rows,
            mm_config=Float8MMConfig(use_fast_accum=True),
            kernel_preference=kernel,
            hp_value_lb=_SMALLEST,
            act_quant_kwargs=QuantizeTensorToFloat8Kwargs(
                granularity=rows, hp_value_lb=_SMALLEST, kernel_preference=kernel
            ),
        )
    return rounded
