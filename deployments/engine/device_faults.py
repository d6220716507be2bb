"""What a failed call says of its device: that it is lost, that its memory was too small, or nothing.

A device that is lost answers every later call of this process with an error as well: the process must end
(deployments/health.py). One whose memory was too small goes on, with less at once (fitting.py).
"""

import torch

# As cuBLAS and cuDNN say it, whose errors have no type of their own.
_OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_LOST = (
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
)


class DeviceFaultError(RuntimeError):
    """The device is lost to this process."""

    @classmethod
    def of(cls, error: BaseException) -> "DeviceFaultError":
        return error if isinstance(error, cls) else cls(f"{type(error).__name__}: {error}")


def is_device_fault(error: BaseException) -> bool:
    """Whether the device is lost: an error of CUDA stays with the process until its end."""
    if isinstance(error, DeviceFaultError):
        return True
    if is_out_of_memory(error):
        return False
    says_so = isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)
    return says_so or isinstance(error, torch.AcceleratorError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller call may do."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
