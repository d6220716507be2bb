"""`midstep check --memory`: the GPU memory of an application, counted from its model's configuration."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from deployments.device_memory import ImageRoom, StageMemory, VaeMemory, denoiser_memory, encoder_memory
from deployments.engine.model_files import PIPELINES
from deployments.engine.model_source import (
    ModelInfo,
    load_model_info,
    load_unet_config,
    part_config,
    pipeline_name,
)
from deployments.engine.models import vae_dtype
from serve.checks import check_catalog
from serve.config.app import AppConfig
from serve.config.shares import UNITS

_GIB = 2**30
_CARDS_GB = (16, 24, 48, 80, 141)  # of 10**9 bytes
_COLUMNS = ("weights", "activations", "graphs", "adapters", "context", "total")
_TIGHT = 0.9  # of a card: what is not counted (kernels' workspaces, gaps between blocks) may not fit


@dataclass(frozen=True)
class Counted:
    """The memory of an application's replicas, as if its device were CUDA.

    num_models: the default model and the catalog's, each counted as large as the default one
    """

    config: AppConfig
    info: ModelInfo
    num_models: int
    encoder: StageMemory
    denoiser: StageMemory
    vae: VaeMemory

    @classmethod
    def of(cls, config: AppConfig) -> "Counted":
        """Counts a model's parts without their weights. Raises ConfigError and ModelLoadError."""
        source, dtype = config.model.source(), dtype_on_cuda(config)
        info = load_model_info(source)
        config.check_for(info)
        num_models = 1 + check_catalog(config)
        engine, texts = config.engine_config(info), PIPELINES[pipeline_name(source)]
        encoder = encoder_memory(
            {part: part_config(source, f"{part}/config.json") for part in texts},
            dtype,
            config.text_batching.max_batch_size,
            min(num_models, config.max_models("encoder")),
            engine.max_rank,
        )
        denoiser = denoiser_memory(
            load_unet_config(source),
            dtype,
            engine,
            config.latent_shapes(info),
            config.largest_shape(info),
            min(num_models, config.max_models("denoiser")),
            config.adapters.gpu_bytes,
        )
        return cls(config, info, num_models, encoder, denoiser, VaeMemory.of(source, dtype))

    def room(self, gpu_bytes: float) -> ImageRoom:
        """The room for images in a decoder's calls, on a GPU of this size."""
        most, share = self.config.max_decoded_images, self.config.decoding_share()
        if share is None:
            return ImageRoom(most)
        return self.vae.room(share * gpu_bytes, most, self.config.max_models("decoder"))

    def decoder(self, room: ImageRoom) -> StageMemory:
        """The memory of a decoder whose largest call has as many images as there is room for."""
        shapes = (*self.config.latent_shapes(self.info), self.config.largest_shape(self.info))
        activations = max(self.vae.images(room.images(shape), shape) for shape in shapes)
        num_models = min(self.num_models, self.config.max_models("decoder"))
        return StageMemory(num_models * self.vae.weights, activations)

    def stages(self, room: ImageRoom) -> dict[str, StageMemory]:
        """The memory of a replica of each stage."""
        return {"encoder": self.encoder, "denoiser": self.denoiser, "decoder": self.decoder(room)}


def dtype_on_cuda(config: AppConfig) -> torch.dtype:
    """The model's dtype on a GPU that has bfloat16."""
    dtype: torch.dtype = getattr(torch, "bfloat16" if config.model.dtype == "auto" else config.model.dtype)
    return dtype


def fullest_gpu(config: AppConfig, stages: Mapping[str, StageMemory]) -> tuple[dict[str, int], int]:
    """The replicas on one GPU that need most memory of all that their shares allow there, and their bytes."""
    units = {name: max(1, round(UNITS * share)) for name, share in config.memory_shares().items()}
    most = {name: min(config.stages[name].max_replicas, UNITS // units[name]) for name in stages}
    found: tuple[dict[str, int], int] = ({}, 0)
    for numbers in product(*(range(count + 1) for count in most.values())):
        together = dict(zip(most, numbers, strict=True))
        if sum(count * units[name] for name, count in together.items()) <= UNITS:
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
            *_notes(counted),
        ]
    )


def _notes(counted: Counted) -> list[str]:
    """What the tables do not show, a sentence each."""
    config, notes = counted.config, []
    if counted.num_models > 1:
        notes.append(f"each model of the catalog counts as if it were as large as {config.model.id}")
    if config.model.dtype == "auto" and vae_dtype(config.model.source(), torch.float16) == torch.float32:
        notes.append(
            "GPUs without bfloat16 (such as a T4) compute in float16, and this VAE in float32: its weights "
            "and images then take twice the memory"
        )
    return ["", *notes] if notes else []


def _in_words(replicas: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in replicas.items() if count)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Lines of columns, numbers to the right and the last column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *middle, last in rows:
        cells = (cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells, last])
