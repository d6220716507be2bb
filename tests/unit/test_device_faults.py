"""Errors that mean a lost device, and errors that mean too little memory."""

import pytest
import torch

from deployments.engine.device_faults import DeviceFaultError, is_device_fault, is_out_of_memory

ILLEGAL = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("error", "is_fault", "is_memory"),
    [
        (ILLEGAL, True, False),
        (DeviceFaultError("lost"), True, False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False, True),
        (torch.AcceleratorError("CUDA error: out of memory"), False, True),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            False,
            True,
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`"),
            True,
            False,
        ),
        (RuntimeError("the size of tensor a (3) must match the size of tensor b (4)"), False, False),
        (ValueError("out of memory, says a prompt"), False, False),
    ],
    ids=repr,
)
def test_what_an_error_says_of_the_device(error: Exception, is_fault: bool, is_memory: bool) -> None:
    assert is_device_fault(error) == is_fault
    assert is_out_of_memory(error) == is_memory


def test_a_lost_device_is_named_by_what_it_was_lost_by() -> None:
    assert str(DeviceFaultError.of(ILLEGAL)) == f"AcceleratorError: {ILLEGAL}"
    lost = DeviceFaultError("lost")
    assert DeviceFaultError.of(lost) is lost
