"""Copies between the CPU and a device, in the order of what the device does and without waiting for it."""

import torch


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """From pageable memory a copy to the device would wait for it."""
    return tensor if tensor.is_cuda else tensor.pin_memory()


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device, unless the tensor is there."""
    return pinned(tensor).to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def receive(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, whose values are there when the device has done what was launched until now; zeros
    of a simulated device, which holds no values.
    """
    if tensor.is_meta:
        return torch.zeros_like(tensor, device="cpu")
    copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return copy.copy_(tensor, non_blocking=True)
