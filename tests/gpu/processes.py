"""Processes with a device of their own, and their memory."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def elsewhere(work: Callable[..., Result], *args: Any) -> Result:
    """The result of work in a process of its own. Raises BrokenProcessPool if that dies."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(work, *args).result()


def forget_building() -> None:
    """Leaves out of the most allocated memory what it took to build a model, which is more than to run it."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
