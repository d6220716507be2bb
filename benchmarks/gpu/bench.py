"""Times work on one device."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from benchmarks.gpu.worker import Settings
from deployments.engine.device_faults import is_device_fault

if TYPE_CHECKING:
    from deployments.engine.device_step import StepRunner
    from deployments.engine.step_inputs import StepInputs

Found = TypeVar("Found")
Figures = Iterator[tuple[str, Any]]  # names and what JSON can hold
_LAUNCHES = 4  # of a step, before it is waited for: the device must not wait for the CPU
_GIB = 1 << 30


@dataclass(frozen=True)
class Bench:
    """Every figure is the median of `settings.repeats` timings. window_s: how long two things run at once"""

    device: torch.device
    dtype: torch.dtype
    settings: Settings
    window_s: float

    @classmethod
    def of_this_machine(cls, settings: Settings) -> "Bench":
        if torch.cuda.is_available():
            return cls(torch.device("cuda"), torch.bfloat16, settings, 3.0)
        return cls(torch.device("cpu"), torch.float32, settings, 0.2)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def once(self, work: Callable[[], object], times: int = 1) -> float:
        """Seconds of one of `times` calls, launched one after another."""
        self.synchronize()
        started = time.perf_counter()
        for _ in range(times):
            work()
        self.synchronize()
        return (time.perf_counter() - started) / times

    @torch.inference_mode()
    def seconds(self, work: Callable[[], object], times: int = 1) -> float:
        """The same as a median, after a first call that does not count."""
        work()
        return statistics.median(self.once(work, times) for _ in range(self.settings.repeats))

    def in_turns(self, works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Median seconds of works that take turns. They should have run before."""
        rounds = [
            {name: self.once(work) for name, work in works.items()} for _ in range(self.settings.repeats)
        ]
        return {name: statistics.median(one[name] for one in rounds) for name in works}

    def step_s(self, run_step: "StepRunner", inputs: "StepInputs") -> float:
        """Seconds of a step where the next one is launched before it ends, as the engine does."""
        return self.seconds(lambda: run_step.launch(inputs), _LAUNCHES)

    def sized(self, family: str) -> str:
        """The family in the size that this device can run, for `random_models`."""
        return family if self.is_cuda else f"tiny-{family}"

    @cached_property
    def matrix_peak(self) -> float:
        """FLOP/s of a large matrix product on random data, the upper bound for any model."""
        side = 8192 if self.is_cuda else 256
        left, right = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * side**3 / self.seconds(lambda: left @ right, times=10)

    def forget_peak_memory(self) -> None:
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory(self) -> dict[str, float]:
        """GiB since `forget_peak_memory`; empty on a CPU."""
        if not self.is_cuda:
            return {}
        return {
            "peak_allocated_gib": torch.cuda.max_memory_allocated(self.device) / _GIB,
            "peak_reserved_gib": torch.cuda.max_memory_reserved(self.device) / _GIB,
        }

    def release_memory(self) -> None:
        if self.is_cuda:
            torch.cuda.empty_cache()

    def environment(self) -> dict[str, str]:
        device = torch.cuda.get_device_name(self.device) if self.is_cuda else "CPU (tiny sizes: no figures)"
        return {
            "date": datetime.now(UTC).date().isoformat(),
            "device": device,
            "dtype": str(self.dtype).removeprefix("torch."),
            "cuda": torch.version.cuda or "none",
            "python": sys.version.split()[0],
            **{
                name: _version(name) for name in ("torch", "diffusers", "transformers", "xformers", "torchao")
            },
        }


def figures_or_reason(measure: Callable[[], Found]) -> Found | str:
    """The figures, or why they cannot be had here. Raises the error of a lost device."""
    try:
        return measure()
    except Exception as error:  # libraries that cannot run here fail in many ways
        if is_device_fault(error):
            raise
        return f"cannot run here: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
