"""Which of its kernels torch takes for a U-Net's attention."""

import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn.attention import SDPBackend

from deployments.engine.conditions import MAX_TOKENS


def sdpa_backends(module: nn.Module, device: torch.device, dtype: torch.dtype) -> dict[str, list[int]]:
    """The sizes of a module's attention heads, rising, by the backend of scaled_dot_product_attention.

    A backend has its name in torch.nn.attention.SDPBackend.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, Attention)]
    backends: dict[str, list[int]] = {}
    for size in sorted({layer.inner_dim // layer.heads for layer in layers}):
        query = torch.zeros(1, 1, MAX_TOKENS, size, device=device, dtype=dtype)
        backend = SDPBackend(torch._fused_sdp_choice(query, query, query))
        backends.setdefault(backend.name, []).append(size)
    return backends
