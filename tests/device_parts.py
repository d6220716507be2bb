"""Parts of a GPU run that go wrong, for tests of its runner."""

import logging
import os
import threading
from typing import TYPE_CHECKING

from deployments.engine.device_faults import DeviceFaultError

if TYPE_CHECKING:
    from benchmarks.gpu.bench import Bench, Figures


def breaks(bench: "Bench", family: str) -> "Figures":
    yield "process", os.getpid()
    logging.getLogger("ray.serve").warning("it is going to break")
    raise AttributeError("no such attribute")


def loses_the_device(bench: "Bench", family: str) -> "Figures":
    yield "process", os.getpid()
    raise DeviceFaultError("an illegal memory access was encountered")


def dies(bench: "Bench", family: str) -> "Figures":
    yield "process", os.getpid()
    os._exit(3)


def hangs(bench: "Bench", family: str) -> "Figures":
    yield "process", os.getpid()
    threading.Event().wait()


def succeeds(bench: "Bench", family: str) -> "Figures":
    yield "process", os.getpid()


def has_many_figures(bench: "Bench", family: str) -> "Figures":
    """Never ends. The figures are large, so that most of the time one of them is being written."""
    yield "process", os.getpid()
    number = 0
    while True:
        yield f"figure {number % 20}", str(number) * 500_000
        number += 1
