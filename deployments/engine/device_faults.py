"""Classifies a failed call: the device is lost, its memory was too small, or neither.

A lost device answers every later call of this process with an error, so the process must end
(deployments/health.py). A device whose memory was too small continues with smaller calls (fitting.py).
"""

import torch

# The messages of cuBLAS and cuDNN, whose errors have no type of their own.
_OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_LOST = (
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
)


class DeviceFaultError(RuntimeError):
    """This process has lost its device."""

    @classmethod
    def of(cls, error: BaseException) -> "DeviceFaultError":
        return error if isinstance(error, cls) else cls(f"{type(error).__name__}: {error}")


def is_device_fault(error: BaseException) -> bool:
    """Whether the device is lost. A CUDA error stays with the process until the process ends."""
    if isinstance(error, DeviceFaultError):
        return True
    if is_out_of_memory(error):
        return False
    says_so = isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)
    return says_so or isinstance(error, torch.AcceleratorError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller call may succeed."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
