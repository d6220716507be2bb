"""A U-Net's forward on a CPU: its rows in parts, one for every core."""

import os
from concurrent.futures import ThreadPoolExecutor

import torch

from deployments.engine.conditions import Conditions
from deployments.engine.models import UNet

# What a smaller part takes is mostly Python, which runs on one core at a time.
_MIN_ROWS_OF_PART = 2
_LOWEST_PRIORITY = 19


class RowParts:
    """Calls a U-Net as it is called itself. Has as many cores as torch has threads where this is built.

    Where all cores share every operation, they wait for each other hundreds of times in a forward, spinning,
    and a process that needs one of the cores holds up all: beside a VAE that decodes on one core of two,
    forwards took three to five times as long, and those in parts less than twice. Alone on the machine parts
    are faster as well, from six rows on: what a core works on fits its cache better. The thread that calls
    should otherwise have one torch thread: more would be left spinning by its own small operations.
    """

    def __init__(self, unet: UNet) -> None:
        self._unet = unet
        self._num_threads = torch.get_num_threads()
        # What torch.compile made has its number of threads compiled in.
        self._num_parts = 1 if unet.is_compiled else self._num_threads
        self._cores = ThreadPoolExecutor(self._num_parts, "unet-part", _use_one_thread)

    def __call__(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: Conditions,
    ) -> torch.Tensor:
        """As `UNet.__call__`."""
        rows = len(latents)
        if self._num_parts == 1 or rows < self._num_parts * _MIN_ROWS_OF_PART:
            return self._on_all_cores(latents, timesteps, conditions)
        # Of one size, so that a row's bits do not depend on its place. The padding takes no time: without it
        # its part would wait for the others.
        size = -(-rows // self._num_parts)
        places = torch.arange(size * self._num_parts).clamp(max=rows - 1).view(self._num_parts, size)
        parts = [(latents[place], timesteps[place], conditions.take(place)) for place in places]
        return torch.cat(list(self._cores.map(self._predict, *zip(*parts, strict=True))))[:rows]

    def _on_all_cores(
        self, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        # On the calling thread: OpenMP's workers are a team for each thread that has any, and where there are
        # more of them than cores they stop spinning, which nearly doubles a small forward's time.
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
    # Last in line for the cores, on Linux this thread alone. What others need of them is short and waited
    # for: beside a running engine jobs were handed in within 16 ms and not 40 (p50).
    os.setpriority(os.PRIO_PROCESS, 0, _LOWEST_PRIORITY)
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread's first look takes what any thread has set last: now, not later
