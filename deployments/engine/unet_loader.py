"""Loads U-Nets on a device that is there."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from weakref import WeakSet, WeakValueDictionary

import diffusers
import torch

from deployments.engine.bank import AdapterBank, DevicePool
from deployments.engine.conditions import UNetShape, architecture
from deployments.engine.device_step import CapturedSteps, EagerSteps, StepRunner, step_runner
from deployments.engine.messages import LatentShape
from deployments.engine.model_source import ModelRef, Placement, load_unet_config
from deployments.engine.models import load_unet_module, place_unet, unet_bank
from deployments.engine.pace import Pace

_LOW, _LOWEST = 10, 19  # priorities


class HostMemory:
    """U-Nets that were loaded lately, in the host's memory, from where they are on a device in a moment.

    max_bytes: of all of them; those that were used longest ago go first
    """

    def __init__(self, max_bytes: float) -> None:
        self._max_bytes = max_bytes
        self._modules: OrderedDict[str, diffusers.UNet2DConditionModel] = OrderedDict()

    def module(
        self, name: str, load: Callable[[], diffusers.UNet2DConditionModel]
    ) -> diffusers.UNet2DConditionModel:
        """The module of that name, loaded if it is not there. It stays this memory's: only copy from it."""
        if name not in self._modules:
            self._modules[name] = load()
        self._modules.move_to_end(name)
        while len(self._modules) > 1 and sum(map(bytes_of, self._modules.values())) > self._max_bytes:
            self._modules.popitem(last=False)
        return self._modules[name]


def bytes_of(module: torch.nn.Module) -> int:
    """The bytes of a module's weights."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())


class DeviceLoader:
    """Loads into a device's memory, by way of the host's.

    static_shapes: latent shapes that are padded to a few row counts; num_threads: of a CPU
    host_bytes: the host's memory for models; a CPU has no other, so it keeps none there
    max_rank: of the banks for adapters, one for each architecture (bank.AdapterBank)
    pool_bytes: device memory for adapters that were used lately, of all architectures
    capture_failed: called for every shape of steps that could not be captured
    """

    def __init__(
        self,
        placement: Placement,
        static_shapes: Collection[LatentShape],
        num_threads: int,
        host_bytes: float = 0.0,
        max_rank: int = 0,
        pool_bytes: float = 0.0,
        capture_failed: Callable[[], None] = lambda: None,
    ) -> None:
        # A bank goes with the last U-Net that reads it.
        self._banks: WeakValueDictionary[str, AdapterBank] = WeakValueDictionary()
        self._pool = DevicePool(placement.torch_device(), pool_bytes)
        self._max_rank = max_rank
        self._host = HostMemory(host_bytes) if placement.torch_device().type != "cpu" else None
        self._placement = placement
        device = placement.torch_device()
        # The one for loads, so that they do not wait for forwards on the engine's, nor forwards for them.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._static_shapes = static_shapes
        self._num_threads = num_threads
        self._runners: WeakSet[EagerSteps | CapturedSteps] = WeakSet()
        self._capture_failed = capture_failed

    def describe(self, model: ModelRef) -> UNetShape:
        config = load_unet_config(model.source)
        return UNetShape.of(config, self._placement.torch_device(), self._placement.torch_dtype())

    def load(self, model: ModelRef, into: StepRunner | None) -> EagerSteps | CapturedSteps:
        """Loads a model. Another one's memory is used again if the architecture is the same; else it is given
        back before anything is allocated."""
        if isinstance(into, EagerSteps | CapturedSteps):
            # Where host memory keeps modules, they are copied from there.
            if self._host is None and into.unet.take_file(model.source, Pace(self._is_running).rest):
                return into
            module = self._module(model)
            if into.unet.is_like(module):
                with self._beside_forwards():
                    into.unet.take(module)
                return into
            del into, module
        with self._beside_forwards():
            module = self._module(model, copy=True)
            unet = place_unet(module, self._placement, self._bank(module))
        runner = step_runner(unet, self._static_shapes, self._num_threads, self._capture_failed)
        self._runners.add(runner)
        return runner

    def _is_running(self) -> bool:
        """Whether a forward of its models runs on a CPU."""
        return any(isinstance(runner, EagerSteps) and runner.is_running for runner in list(self._runners))

    def _bank(self, module: diffusers.UNet2DConditionModel) -> AdapterBank:
        key = architecture(module.config)
        bank = self._banks.get(key)
        if bank is None:
            bank = self._banks[key] = unet_bank(module, self._placement, self._max_rank, self._pool)
        return bank

    @contextmanager
    def _beside_forwards(self) -> Iterator[None]:
        """Copies to the device on the stream for loads, and waits for them."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def _module(self, model: ModelRef, copy: bool = False) -> diffusers.UNet2DConditionModel:
        """The module in the host's memory. copy: whether it is going to be changed"""

        def load() -> diffusers.UNet2DConditionModel:
            return load_unet_module(model.source, self._placement.torch_dtype())

        if self._host is None:
            return load()
        module = self._host.module(model.unet, load)
        return deepcopy(module) if copy else module


def loading_thread(placement: Placement, name: str = "model-loading") -> ThreadPoolExecutor:
    """A thread that loads models, or adapters. It has one torch thread, because a second team of OpenMP
    workers would slow down the engine's (engine_thread), and on Linux a low priority."""
    return ThreadPoolExecutor(1, name, _prepare, (_is_on_cpu(placement),))


def _is_on_cpu(placement: Placement) -> bool:
    return not placement.is_simulated and placement.torch_device().type == "cpu"


def _prepare(is_on_cpu: bool) -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # the first call in a thread copies the last value set in any thread: do it now
    # On a CPU, forwards run on the same cores with the lowest priority (engine.row_parts). Not SCHED_IDLE:
    # this thread holds Python's lock now and then, and on busy cores the event loop would wait for it.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST if is_on_cpu else _LOW)
