"""Faults of a simulated device on demand. Files in a folder say what goes wrong."""

from pathlib import Path

import torch

_LASTING: dict[str, tuple[type[RuntimeError], str]] = {
    "lost": (torch.AcceleratorError, "CUDA error: an illegal memory access was encountered"),
    "broken": (RuntimeError, "an illegal memory access was encountered"),
    "taken": (torch.OutOfMemoryError, "CUDA out of memory"),
}


class SimulatedFaults:
    """The faults of one stage's device. folder: None for no faults

    STAGE.lost: the first device that finds it removes it and is lost: later calls fail as after a CUDA error
    STAGE.broken: the same, but the error does not say that the device is lost
    STAGE.taken: the same, but every call fails for lack of memory
    STAGE.memory: a number; calls with more rows, texts or images do not fit
    """

    def __init__(self, folder: str | None, stage: str) -> None:
        self._folder = Path(folder) if folder is not None else None
        self._stage = stage
        self._error: tuple[type[RuntimeError], str] | None = None

    def check(self, count: int = 0) -> None:
        """Called before any work on the device. Raises the error that a real device would."""
        if self._folder is None:
            return
        for fault, error in _LASTING.items():
            if self._take(fault):
                self._error = error
        if self._error is not None:
            kind, message = self._error
            raise kind(message)
        memory = self._folder / f"{self._stage}.memory"
        if memory.exists() and count > int(memory.read_text()):
            raise torch.OutOfMemoryError(f"CUDA out of memory: {count} do not fit")

    def _take(self, fault: str) -> bool:
        assert self._folder is not None
        try:
            (self._folder / f"{self._stage}.{fault}").unlink()
        except FileNotFoundError:
            return False
        return True
