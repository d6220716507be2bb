"""Runs a U-Net's forward on a CPU with its rows split into parts, one for each core."""

import os
from concurrent.futures import ThreadPoolExecutor

import torch

from deployments.engine.conditions import Conditions
from deployments.engine.models import UNet

# Smaller parts spend most of their time in Python, which runs on one core at a time.
_MIN_ROWS_OF_PART = 2
_LOWEST_PRIORITY = 19


class RowParts:
    """Calls a U-Net with the U-Net's own signature, on as many cores as `num_threads`, or as torch has
    threads when this is built.

    If all cores share every operation, they wait for each other hundreds of times in a forward, spinning, and
    a process that needs one of the cores holds up all. With a VAE decoding on one of two cores, shared
    forwards took three to five times as long, and forwards in parts less than twice. On an idle machine parts
    are faster too, from six rows on, since a core's work fits its cache better. Otherwise the calling thread
    should have one torch thread: more would be left spinning by its small operations.
    """

    def __init__(self, unet: UNet, num_threads: int | None = None) -> None:
        self._unet = unet
        self._num_threads = num_threads or torch.get_num_threads()
        # torch.compile fixes the number of threads in its code.
        self._num_parts = 1 if unet.is_compiled else self._num_threads
        self._cores = ThreadPoolExecutor(self._num_parts, "unet-part", _use_one_thread)

    def __call__(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: Conditions,
    ) -> torch.Tensor:
        """The same as `UNet.__call__`."""
        rows = len(latents)
        if self._num_parts == 1 or rows < self._num_parts * _MIN_ROWS_OF_PART:
            return self._on_all_cores(latents, timesteps, conditions)
        # All parts have one size, so that a row's bits do not depend on its place. The padding takes no time:
        # without it the smaller part would wait for the others.
        size = -(-rows // self._num_parts)
        places = torch.arange(size * self._num_parts).clamp(max=rows - 1).view(self._num_parts, size)
        parts = [(latents[place], timesteps[place], conditions.take(place)) for place in places]
        return torch.cat(list(self._cores.map(self._predict, *zip(*parts, strict=True))))[:rows]

    def _on_all_cores(
        self, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        # This runs on the calling thread. Each thread that uses OpenMP has its own team of workers. If there
        # are more workers than cores, they stop spinning, and a small forward takes nearly twice as long.
        num_threads = torch.get_num_threads()
        torch.set_num_threads(self._num_threads)
        try:
            return self._predict(latents, timesteps, conditions)
        finally:
            torch.set_num_threads(num_threads)

    @torch.inference_mode()
    def _predict(
        self, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        return self._unet(latents, timesteps, conditions)


def _use_one_thread() -> None:
    # Gives this thread (on Linux not the whole process) the lowest priority. Other work on the cores is short
    # and someone waits for it: beside a running engine, jobs were handed in within 16 ms instead of 40 (p50).
    os.setpriority(os.PRIO_PROCESS, 0, _LOWEST_PRIORITY)
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first call in a thread copies the last value set in any thread: do it now
