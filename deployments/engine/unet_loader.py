"""Loads U-Nets on a device that is there."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection

import torch

from deployments.engine.conditions import UNetShape
from deployments.engine.device_step import CapturedSteps, EagerSteps, StepRunner, step_runner
from deployments.engine.messages import LatentShape
from deployments.engine.model_source import ModelRef, Placement, load_unet_config
from deployments.engine.models import load_unet, load_unet_module

_LOW_PRIORITY = 10


class DeviceLoader:
    """static_shapes: latent shapes that are padded to a few row counts; num_threads: of a CPU"""

    def __init__(
        self, placement: Placement, static_shapes: Collection[LatentShape], num_threads: int
    ) -> None:
        self._placement = placement
        self._static_shapes = static_shapes
        self._num_threads = num_threads

    def describe(self, model: ModelRef) -> UNetShape:
        config = load_unet_config(model.source)
        return UNetShape.of(config, self._placement.torch_device(), self._placement.torch_dtype())

    def load(self, model: ModelRef, into: StepRunner | None) -> EagerSteps | CapturedSteps:
        """Loads a model. Another one's memory is used again if the architecture is the same; else it is given
        back before anything is allocated."""
        if isinstance(into, EagerSteps | CapturedSteps):
            module = load_unet_module(model.source, self._placement.torch_dtype())
            if into.unet.is_like(module):
                into.unet.take(module)
                return into
            del into, module
        unet = load_unet(model.source, self._placement)
        return step_runner(unet, self._static_shapes, self._num_threads)


def prepare_loading() -> None:
    """For a thread that loads. It has one torch thread, because a second team of OpenMP workers would slow
    down the engine's (engine_thread), and (on Linux) a low priority, as forwards should not wait for it."""
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first call in a thread copies the last value set in any thread: do it now
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW_PRIORITY)
