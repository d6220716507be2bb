"""`midstep check --memory`: the GPU memory of an application, counted from its model's configuration."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from deployments.device_memory import ImageRoom, StageMemory, VaeMemory, denoiser_memory, encoder_memory
from deployments.engine.messages import LatentShape
from deployments.engine.model_files import PIPELINES
from deployments.engine.model_source import (
    ModelInfo,
    load_model_info,
    load_unet_config,
    part_config,
    pipeline_name,
)
from serve.config.app import AppConfig

_GIB = 2**30
_CARDS_GB = (16, 24, 48, 80, 141)  # of 10**9 bytes
_COLUMNS = ("weights", "activations", "graphs", "adapters", "context", "total")
_TIGHT = 0.9  # of a card: what is not counted (kernels' workspaces, gaps between blocks) may not fit
_UNITS = 10_000  # Ray's smallest unit is this part of a GPU


@dataclass(frozen=True)
class Counted:
    """The memory of an application's replicas, as if its device were CUDA."""

    config: AppConfig
    info: ModelInfo
    encoder: StageMemory
    denoiser: StageMemory
    vae: VaeMemory

    @classmethod
    def of(cls, config: AppConfig) -> "Counted":
        """Counts a model's parts without their weights. Raises ConfigError and ModelLoadError."""
        source, dtype = config.model.source(), dtype_on_cuda(config)
        info = load_model_info(source)
        config.check_for(info)
        engine, texts = config.engine_config(info), PIPELINES[pipeline_name(source)]
        encoder = encoder_memory(
            {part: part_config(source, f"{part}/config.json") for part in texts},
            dtype,
            config.text_batching.max_batch_size,
            _num_models(config, "encoder"),
            engine.max_rank,
        )
        denoiser = denoiser_memory(
            load_unet_config(source),
            dtype,
            engine,
            config.latent_shapes(info),
            largest_shape(config, info),
            _num_models(config, "denoiser"),
            config.adapters.gpu_bytes,
        )
        return cls(config, info, encoder, denoiser, VaeMemory.of(source, dtype))

    def room(self, gpu_bytes: float) -> ImageRoom:
        """The room for images in a decoder's calls, on a GPU of this size."""
        most, share = self.config.max_decoded_images, self.config.decoding_share()
        return ImageRoom(most) if share is None else self.vae.room(share * gpu_bytes, most)

    def decoder(self, room: ImageRoom) -> StageMemory:
        """The memory of a decoder whose largest call has as many images as there is room for."""
        shapes = (*self.config.latent_shapes(self.info), largest_shape(self.config, self.info))
        activations = max(self.vae.images(room.images(shape), shape) for shape in shapes)
        return StageMemory(_num_models(self.config, "decoder") * self.vae.weights, activations)

    def stages(self, room: ImageRoom) -> dict[str, StageMemory]:
        """The memory of a replica of each stage."""
        return {"encoder": self.encoder, "denoiser": self.denoiser, "decoder": self.decoder(room)}


def dtype_on_cuda(config: AppConfig) -> torch.dtype:
    """The model's dtype on a GPU that has bfloat16."""
    dtype: torch.dtype = getattr(torch, "bfloat16" if config.model.dtype == "auto" else config.model.dtype)
    return dtype


def largest_shape(config: AppConfig, info: ModelInfo) -> LatentShape:
    """The latents of the largest image that the limits allow, as square as they allow."""
    limits, factor = config.limits_for(info), info.scale_factor
    height = min(limits.max_height, math.isqrt(limits.max_pixels))
    width = min(limits.max_width, limits.max_pixels // height)
    return max(1, min(limits.max_height, limits.max_pixels // width) // factor), max(1, width // factor)


def _num_models(config: AppConfig, stage: str) -> int:
    """The most models that a replica holds."""
    return config.stages[stage].max_models if config.catalog.folder else 1


def fullest_gpu(config: AppConfig, stages: Mapping[str, StageMemory]) -> tuple[dict[str, int], int]:
    """The replicas on one GPU that need most memory of all that their shares allow there, and their bytes."""
    units = {name: max(1, round(_UNITS * share)) for name, share in config.memory_shares().items()}
    most = {name: min(config.stages[name].max_replicas, _UNITS // units[name]) for name in stages}
    found: tuple[dict[str, int], int] = ({}, 0)
    for numbers in product(*(range(count + 1) for count in most.values())):
        together = dict(zip(most, numbers, strict=True))
        if sum(count * units[name] for name, count in together.items()) <= _UNITS:
            num_bytes = sum(count * stages[name].total for name, count in together.items())
            found = max(found, (together, num_bytes), key=lambda one: one[1])
    return found


def memory_tables(config: AppConfig) -> str:
    """The memory of each stage, and the GPUs that the stages fit. Raises ConfigError and ModelLoadError."""
    counted = Counted.of(config)
    info, dtype = counted.info, str(dtype_on_cuda(config)).removeprefix("torch.")
    height, width = config.default_size(info)
    one_image = counted.stages(ImageRoom(1))
    calls = {
        "encoder": f"{config.text_batching.max_batch_size} texts",
        "denoiser": f"{config.max_rows(info)} rows of {width}x{height}",
        "decoder": "1 image of the largest size",
    }
    stages = [
        [name, *(f"{getattr(one, column) / _GIB:.2f}" for column in _COLUMNS), calls[name]]
        for name, one in one_image.items()
    ]
    together, _ = fullest_gpu(config, one_image)
    shape = config.latent_shapes(info)[0]
    cards = [["GPU", f"images of {width}x{height} in a decoder's call", "total", "fits"]]
    for gigabytes in _CARDS_GB:
        gpu_bytes = gigabytes * 1e9
        room = counted.room(gpu_bytes)
        _, num_bytes = fullest_gpu(config, counted.stages(room))
        fits = "no" if num_bytes > gpu_bytes else "tight" if num_bytes > _TIGHT * gpu_bytes else "yes"
        cards.append([f"{gigabytes} GB", str(room.images(shape)), f"{num_bytes / _GIB:.2f}", fits])
    return "\n".join(
        [
            f"{config.model.id} in {dtype}, in GiB, counted from its configuration and not measured:",
            *_aligned([["stage", *_COLUMNS, "largest call"], *stages]),
            "",
            f"the fullest GPU has {_in_words(together)}; a GB is 0.93 GiB:",
            *_aligned(cards),
        ]
    )


def _in_words(replicas: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in replicas.items() if count)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Lines of columns, numbers to the right and the last column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *middle, last in rows:
        cells = (cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells, last])
