"""One denoising step on a device: a function of tensors, without a branch on their values.

It runs as it is, or, on CUDA, is captured once for every shape and replayed. Launching a U-Net's kernels one
by one takes the CPU longer than a fast device takes to run them.
"""

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from deployments.engine.bank import AdapterBank
from deployments.engine.conditions import MAX_TOKENS, UNetInterface, random_conditions
from deployments.engine.messages import LatentShape
from deployments.engine.models import UNet
from deployments.engine.row_parts import RowParts
from deployments.engine.sampler_table import NUM_INPUTS, NUM_OUTPUTS, STATE_SLOTS, advance
from deployments.engine.step_inputs import StepInputs
from deployments.engine.transfers import pinned, send

logger = logging.getLogger("ray.serve")


def denoise_step(unet: UNet | RowParts, inputs: StepInputs) -> torch.Tensor:
    """Computes the next states and the estimates of the clean latents, [B, NUM_OUTPUTS, C, h, w] float32."""
    latents = inputs.states[:, 0] * inputs.input_scales[:, None, None, None]
    predictions = unet(latents[inputs.request_of_row], inputs.timesteps, inputs.conditions)
    negative, positive = predictions[inputs.first_rows], predictions[inputs.last_rows]
    outputs = negative + inputs.guidance_scales[:, None, None, None] * (positive - negative)
    outputs = _rescaled(outputs, positive, inputs.guidance_rescales[:, None, None, None])
    noise = inputs.noise.expand_as(outputs)
    return advance(inputs.weights, torch.cat([inputs.states, outputs[:, None], noise[:, None]], dim=1))


def _rescaled(outputs: torch.Tensor, positive: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Guided outputs with the spread of the prompt's, by a share; diffusers' `rescale_noise_cfg`.

    The spread is over a request's own values, so it depends on nobody else. A share of 0 changes no bit.
    """
    over = (1, 2, 3)
    with_spread = outputs * (positive.std(over, keepdim=True) / outputs.std(over, keepdim=True))
    return torch.where(shares == 0, outputs, shares * with_spread + (1 - shares) * outputs)


class Completion(Protocol):
    """The end of everything that was launched before `completion` was called, like torch.cuda.Event."""

    def query(self) -> bool:
        """Whether it is done, successfully or not."""
        ...

    def synchronize(self) -> None:
        """Waits until it is done. Raises the error if it failed."""
        ...


class StepRunner(Protocol):
    """A device as the engine sees it. It runs steps in the order in which they are launched."""

    @property
    def bank(self) -> AdapterBank:
        """What its steps read adapters from."""
        ...

    def launch(self, inputs: StepInputs) -> torch.Tensor:
        """Launches `denoise_step`. The result has its values when the device is done."""
        ...

    def completion(self) -> Completion:
        """The completion of everything launched so far."""
        ...


class _Done:
    """The completion on a CPU, where a step is done when its launch returns."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class _Recorded:
    """The completion of a CUDA stream."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        # Without blocking, a thread that waits for it spins.
        self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._event.record(stream)

    def query(self) -> bool:
        try:
            return bool(self._event.query())  # type: ignore[no-untyped-call]
        except RuntimeError:  # synchronize raises it again
            return True

    def synchronize(self) -> None:
        self._event.synchronize()


class EagerSteps:
    """Launches the kernels of every step one by one. num_threads: of a CPU; None for torch's

    is_running: whether a step runs on the CPU
    """

    def __init__(self, unet: UNet, num_threads: int | None = None) -> None:
        self.unet = unet
        self.bank = unet.bank
        self.is_running = False
        self._device = unet.device
        self._unet = RowParts(unet, num_threads) if unet.device.type == "cpu" else unet

    def launch(self, inputs: StepInputs) -> torch.Tensor:
        self.is_running = self._device.type == "cpu"
        try:
            return denoise_step(self._unet, inputs.map(lambda tensor: send(tensor, self._device)))
        finally:
            self.is_running = False

    def completion(self) -> Completion:
        is_cuda = self._device.type == "cuda"
        return _Recorded(torch.cuda.current_stream(self._device)) if is_cuda else _Done()


@dataclass(frozen=True, slots=True)
class _Captured:
    """A step as a graph, which reads these inputs and writes these outputs."""

    graph: torch.cuda.CUDAGraph
    inputs: StepInputs
    outputs: torch.Tensor


class CapturedSteps:
    """Captures a CUDA graph for every shape of inputs that it meets, and replays it.

    latent_shapes: the shapes to capture; steps of other shapes, and of longer texts than one chunk, run
        eagerly, since each capture costs memory and a pause
    failed: called for every shape whose capture failed; its steps run eagerly

    The graphs share one memory pool, since only one runs at a time and its outputs are copied out. Memory is
    reused only on one stream and in blocks that are large enough, so the largest shape should come first.
    """

    def __init__(
        self, unet: UNet, latent_shapes: Collection[LatentShape], failed: Callable[[], None] = lambda: None
    ) -> None:
        self.unet = self._unet = unet
        self.bank = unet.bank
        self._latent_shapes = frozenset(latent_shapes)
        self._failed = failed
        self._eager = EagerSteps(unet)
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(unet.device)  # type: ignore[no-untyped-call]
        self._captured: dict[tuple[torch.Size, ...], _Captured | None] = {}  # None: it failed
        self._failed_graphs: list[torch.cuda.CUDAGraph] = []

    def launch(self, inputs: StepInputs) -> torch.Tensor:
        height, width = inputs.states.shape[-2:]
        is_long = inputs.conditions.prompt_embeds.shape[1] != MAX_TOKENS
        if (height, width) not in self._latent_shapes or is_long:
            return self._eager.launch(inputs)
        # A graph reads noise at each step. Where none is drawn, zeros are filled in on the device.
        noise = send(inputs.noise, self._unet.device).expand_as(inputs.states[:, 0])
        full = replace(inputs, noise=noise)
        shapes = tuple(tensor.shape for tensor in full.tensors())
        if shapes not in self._captured:
            self._captured[shapes] = self._try_to_capture(full)
        captured = self._captured[shapes]
        if captured is None:
            return self._eager.launch(inputs)
        for target, source in zip(captured.inputs.tensors(), full.tensors(), strict=True):
            target.copy_(pinned(source), non_blocking=True)
        captured.graph.replay()
        return captured.outputs.clone()

    def completion(self) -> Completion:
        return self._eager.completion()

    def _try_to_capture(self, inputs: StepInputs) -> _Captured | None:
        """A captured step of this shape; None if capturing it failed.

        Raises the errors of running the step, and that of a lost device.
        """
        held = self._warmed_up(inputs)
        graph = torch.cuda.CUDAGraph()
        device = self._unet.device
        try:
            # torch.cuda.graph leaves its own stream only if the capture ends well.
            with torch.cuda.stream(torch.cuda.current_stream(device)):
                outputs = self._capture(graph, held)
        except Exception as error:  # whatever it is, the step ran just now
            torch.cuda.synchronize(device)  # a lost device answers this with an error too
            self._give_up(graph)
            height, width = inputs.states.shape[-2:]
            rows, rank = inputs.conditions.adapter_scales.shape
            logger.warning(
                "steps of %d rows at %dx%d with adapters of rank %d could not be captured and run eagerly",
                rows,
                height,
                width,
                rank,
                exc_info=error,
            )
            self._failed()
            return None
        return _Captured(graph, held, outputs)

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """Gives back what a failed capture has taken, so that it disturbs no later allocation or capture."""
        graph.reset()
        device = self._stream.device.index
        # CUDAGraph::capture_end does this itself, unless it fails.
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(device, self._pool)
            torch._C._cuda_releasePool(device, self._pool)
        # The allocator of pinned memory may go on asking it whose allocations are its own.
        self._failed_graphs.append(graph)
        # A pool in which something has not ended, or that no graph uses, takes no more captures.
        self._pool = torch.cuda.graph_pool_handle()

    def _warmed_up(self, inputs: StepInputs) -> StepInputs:
        """A copy of the inputs, with which the step has run."""
        held = inputs.map(lambda tensor: tensor.to(self._unet.device, copy=True))
        # Choose kernels and allocate workspaces before the capture, on the stream that the capture uses.
        self._stream.wait_stream(torch.cuda.current_stream(self._unet.device))
        with torch.cuda.stream(self._stream):
            for _ in range(2):
                denoise_step(self._unet, held)
        torch.cuda.current_stream(self._unet.device).wait_stream(self._stream)
        return held

    def _capture(self, graph: torch.cuda.CUDAGraph, held: StepInputs) -> torch.Tensor:
        # Another thread may load a model meanwhile, which allocates.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            return denoise_step(self._unet, held)


def step_runner(
    unet: UNet,
    static_shapes: Collection[LatentShape],
    num_threads: int | None = None,
    capture_failed: Callable[[], None] = lambda: None,
) -> EagerSteps | CapturedSteps:
    """The fastest runner on the U-Net's device.

    static_shapes: shapes that are padded to a few row counts; num_threads: of a CPU; None for torch's
    capture_failed: called for every shape that could not be captured
    """
    if unet.device.type == "cuda" and static_shapes:
        return CapturedSteps(unet, static_shapes, capture_failed)
    return EagerSteps(unet, num_threads)


def warm_up(
    unet: UNetInterface, run_step: StepRunner, latent_shape: LatentShape, rows: int, rank: int = 0
) -> None:
    """Runs one step on random data and waits for it, for warming up and measuring. rank: of adapters"""
    every_row = torch.arange(rows)
    with torch.inference_mode():
        run_step.launch(
            StepInputs(
                states=torch.randn(
                    rows, STATE_SLOTS, unet.latent_channels, *latent_shape, device=unet.device
                ),
                noise=torch.zeros(rows, 1, 1, 1),
                weights=torch.ones(rows, NUM_OUTPUTS, NUM_INPUTS),
                input_scales=torch.ones(rows),
                guidance_scales=torch.ones(rows),
                guidance_rescales=torch.zeros(rows),
                first_rows=every_row,
                last_rows=every_row,
                request_of_row=every_row,
                timesteps=torch.full((rows,), 500.0),
                conditions=random_conditions(rows, latent_shape, unet, rank),
            )
        )
    run_step.completion().synchronize()
