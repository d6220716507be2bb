"""The errors of a stage that could not do its work for one request."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")


class Fault(StrEnum):
    """BROKEN: something unforeseen; REFUSED: impossible, which should have been said before; UNLOADABLE: the
    files of the request's model cannot be used; ADAPTER: one of its adapters cannot be used."""

    BROKEN = "broken"
    REFUSED = "refused"
    OUT_OF_MEMORY = "out_of_memory"
    NOT_FINITE = "not_finite"
    UNLOADABLE = "unloadable"
    ADAPTER = "adapter"


class StageError(Exception):
    """One request fails and the stage goes on. detail: a sentence for the client"""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(fault, detail)
        self.fault = fault
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


def broken(error: Exception) -> StageError:
    return StageError(Fault.BROKEN, f"{type(error).__name__}: {error}")


def unloadable() -> StageError:
    """The error for a model whose files cannot be used. What is wrong is for the log, with paths."""
    return StageError(
        Fault.UNLOADABLE,
        "The model's files could not be loaded; the server's log says what is wrong with them.",
    )


def not_finite(part: str) -> StageError:
    """The error for NaN or infinity. part: the part of the model that gave it"""
    return StageError(
        Fault.NOT_FINITE,
        f"The {part} gave values that are not numbers (NaN or infinity). In model.dtype float16 such "
        "values overflow; bfloat16 has the range for them.",
    )


def sound(results: Sequence[Result | StageError]) -> list[Result]:
    """The results, if none is an error. Raises the first error."""
    found: list[Result] = []
    for result in results:
        if isinstance(result, StageError):
            raise result
        found.append(result)
    return found


def is_finite(*tensors: torch.Tensor) -> bool:
    """Whether all values are finite. tensors: on the CPU, so that looking does not wait for a device"""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
