"""The memory that stages take on a GPU, counted from a model's configuration without its weights or a GPU."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deployments.engine.adapters import rank_buckets, targets_of
from deployments.engine.bank import AdapterBank, Layout
from deployments.engine.conditions import MAX_TOKENS
from deployments.engine.device_step import Completion, EagerSteps, denoise_step, warm_up
from deployments.engine.engine_config import EngineConfig
from deployments.engine.images import scale_factor_of
from deployments.engine.messages import LatentShape
from deployments.engine.model_files import VAE_FILE
from deployments.engine.model_source import ModelSource, Placement, part_config
from deployments.engine.models import UNet, vae_dtype
from deployments.engine.peak_memory import PeakMemory
from deployments.engine.step_inputs import StepInputs
from deployments.engine.unet_loader import bytes_of
from deployments.tensor_files.architectures import build_module

logger = logging.getLogger("ray.serve")

# An estimate of a process's CUDA context, the kernels that PyTorch and its libraries load, and their
# workspaces. It differs by GPU and driver, and was not measured.
CONTEXT_BYTES = 2**29

_META = torch.device("meta")
_PER_LATENT_OF = (32, 32)  # all that a VAE allocates is in proportion to the latents


@dataclass(frozen=True, slots=True)
class StageMemory:
    """The bytes that a replica takes on its device.

    weights: of all models that it holds; activations: of its largest call
    graphs: captured steps of all models, with their inputs and outputs
    adapters: banks, and adapters that were used lately
    """

    weights: int
    activations: int
    graphs: int = 0
    adapters: int = 0
    context: int = CONTEXT_BYTES

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.graphs + self.adapters + self.context


def encoder_memory(
    configs: Mapping[str, Mapping[str, Any]],
    dtype: torch.dtype,
    num_texts: int,
    num_models: int,
    max_rank: int = 0,
) -> StageMemory:
    """The memory of a prompt encoder. Raises ModelLoadError.

    configs: of its text encoders, by part; max_rank: as in AdapterBank
    """
    weights = adapters = activations = 0
    for part, config in configs.items():
        module = _placed(part, config, dtype)
        weights += bytes_of(module)
        if max_rank:
            adapters += max_rank * Layout.of(targets_of(module)).width * dtype.itemsize
        tokens = torch.zeros(num_texts, MAX_TOKENS, dtype=torch.int64, device=_META)
        with torch.inference_mode(), PeakMemory() as memory:
            module(tokens, output_hidden_states=True)
        activations = max(activations, memory.peak_bytes)
    return StageMemory(num_models * weights, activations, adapters=num_models * adapters)


def denoiser_memory(
    config: Mapping[str, Any],
    dtype: torch.dtype,
    engine: EngineConfig,
    captured: Sequence[LatentShape],
    largest: LatentShape,
    num_models: int,
    pool_bytes: int,
) -> StageMemory:
    """The memory of a denoiser on CUDA. Raises ModelLoadError.

    config: of its U-Net; captured: the shapes whose steps are captured; largest: the largest other one
    pool_bytes: for adapters that were used lately
    """
    steps = _CountedSteps(config, dtype, engine.max_rank)
    row_counts = engine.for_device(torch.device("cuda")).row_counts or ()
    ranks = (0, *rank_buckets(engine.max_rank))
    pool = held = 0
    for shape in captured:
        for rank in ranks:
            peak_bytes, held_bytes = steps.count(shape, rank)  # of each row
            held += held_bytes * sum(row_counts)
            pool = max(pool, peak_bytes * row_counts[-1])
    activations = max(
        steps.count(shape, ranks[-1])[0] * _most_rows(engine, shape) for shape in (*captured, largest)
    )
    adapters = steps.bank_bytes + pool_bytes if engine.max_rank else 0
    return StageMemory(num_models * steps.weight_bytes, activations, num_models * (pool + held), adapters)


def _most_rows(engine: EngineConfig, shape: LatentShape) -> int:
    """The most rows of a forward of this shape, as EngineConfig.row_cap has them at most."""
    allowed = int(engine.max_rows * min(1.0, math.prod(engine.latent_shape) / math.prod(shape)))
    return max(2, engine.deterministic_rows, allowed)


class _CountedSteps:
    """Runs steps of a U-Net without weights, and counts their memory instead of computing anything.

    weight_bytes: of the U-Net; bank_bytes: of its bank for adapters
    """

    def __init__(self, config: Mapping[str, Any], dtype: torch.dtype, max_rank: int) -> None:
        module = _placed("unet", config, dtype)
        layout = Layout.of(targets_of(module))
        self.weight_bytes = bytes_of(module)
        self.bank_bytes = max_rank * layout.width * dtype.itemsize
        self.bank = AdapterBank(layout, max_rank, _META, dtype)
        self.bank.attach(module)
        self._unet = UNet(module, _META, dtype, self.bank)
        self._known: dict[tuple[LatentShape, int], tuple[int, int]] = {}

    def count(self, shape: LatentShape, rank: int) -> tuple[int, int]:
        """The bytes of a row's activations, and of its inputs and outputs. rank: of its adapters"""
        if (shape, rank) not in self._known:
            warm_up(self._unet.shape, self, shape, 1, rank)
        return self._known[shape, rank]

    def launch(self, inputs: StepInputs) -> torch.Tensor:
        held = inputs.map(lambda tensor: tensor.to(_META))
        with PeakMemory() as memory:
            outputs = denoise_step(self._unet, held)
        height, width = inputs.states.shape[-2:]
        held_bytes = sum(one.nbytes for one in (*held.tensors(), outputs))
        self._known[(height, width), inputs.conditions.adapter_scales.shape[1]] = (
            memory.peak_bytes,
            held_bytes,
        )
        return outputs

    def completion(self) -> Completion:
        return EagerSteps(self._unet).completion()


@dataclass(frozen=True, slots=True)
class VaeMemory:
    """The memory of a VAE: its weights, and the bytes per latent of its larger direction."""

    weights: int
    per_latent: float

    @classmethod
    def of(cls, source: ModelSource, dtype: torch.dtype) -> VaeMemory:
        """dtype: of the model's other parts. Raises ModelLoadError."""
        own = vae_dtype(source, dtype)
        vae = _placed("vae", part_config(source, VAE_FILE), own)
        latents = torch.empty(1, vae.config.latent_channels, *_PER_LATENT_OF, dtype=own, device=_META)
        sides = [scale_factor_of(vae) * side for side in _PER_LATENT_OF]
        pixels = torch.empty(1, vae.config.in_channels, *sides, dtype=own, device=_META)
        peak_bytes = 0
        for call, given in ((vae.decode, latents), (vae.encode, pixels)):
            with torch.inference_mode(), PeakMemory() as memory:
                call(given)
            peak_bytes = max(peak_bytes, memory.peak_bytes)
        return cls(bytes_of(vae), peak_bytes / math.prod(_PER_LATENT_OF))

    def images(self, num_images: int, shape: LatentShape) -> int:
        """The bytes of a call for so many images."""
        return math.ceil(num_images * self.per_latent * math.prod(shape))

    def room(self, share_bytes: float, most: int, num_models: int) -> ImageRoom:
        """The room for images in a replica's share of its device, beside so many VAEs like this one.

        most: images in a call in any case
        """
        return ImageRoom(most, self.per_latent, share_bytes - CONTEXT_BYTES - num_models * self.weights)


@dataclass(frozen=True, slots=True)
class ImageRoom:
    """The images that a call of a VAE has at most. num_bytes: for a call"""

    most: int
    per_latent: float = 0.0
    num_bytes: float = math.inf

    def images(self, shape: LatentShape) -> int:
        """The number for images of a shape, at least one."""
        needed = self.per_latent * math.prod(shape)
        return max(1, int(min(self.most, self.num_bytes / needed))) if needed else self.most


def image_room(
    source: ModelSource, placement: Placement, share: float | None, most: int, num_models: int
) -> ImageRoom:
    """The room for images on a GPU, before any VAE is there. Elsewhere `most` has room.

    share: the replica's part of the GPU's memory; None for as much as `most` takes
    num_models: most VAEs there at once
    """
    if share is None or placement.is_simulated or placement.torch_device().type != "cuda":
        return ImageRoom(most)
    free_bytes, total_bytes = torch.cuda.mem_get_info(placement.torch_device())
    # The context is there already, as it is needed to ask.
    share_bytes = min(free_bytes + CONTEXT_BYTES, share * total_bytes)
    room = VaeMemory.of(source, placement.torch_dtype()).room(share_bytes, most, num_models)
    logger.info("calls of the VAE have %.2f GiB of the GPU", room.num_bytes / 2**30)
    return room


def _placed(part: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A part's module as it is on a device, but without weights. Raises ModelLoadError."""
    module = build_module(part, config, f"{part}/config.json")
    # Not the module's own `to`: diffusers' warns of layers to keep in float32, also if there are none.
    torch.nn.Module.to(module, dtype)
    return module.to(memory_format=torch.channels_last).eval().requires_grad_(False)
