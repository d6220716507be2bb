"""Copies between the CPU and a device, in the order of the device's work and without waiting for it."""

import torch


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in pinned memory. A copy from pageable memory to the device would wait for the device."""
    return tensor if tensor.is_cuda else tensor.pin_memory()


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, copied if it is not there."""
    return pinned(tensor).to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def copy(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Copies values into a tensor."""
    tensor.copy_(values, non_blocking=True)


def receive(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, whose values are there when the device has done everything launched so far. From a
    simulated device, which holds no values, it is zeros.
    """
    if tensor.is_meta:
        return torch.zeros_like(tensor, device="cpu")
    copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return copy.copy_(tensor, non_blocking=True)
