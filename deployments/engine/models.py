"""Loads a model in diffusers format: its family, and its parts on a device in a dtype.

Stable Diffusion 1.x and 2.x (epsilon or v-prediction) and SDXL are served. Other models are refused here, at
start, with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError

from deployments.engine.conditions import NUM_TIME_IDS, Conditions
from deployments.engine.model_files import (
    PIPELINES,
    SCHEDULER_FILE,
    UNET_FILE,
    VAE_FILE,
    ConfigFileError,
    WeightFiles,
    part_problems,
    read_config,
    sample_size,
    scheduler_problems,
    unet_problems,
    vae_problems,
)

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class ModelLoadError(RuntimeError):
    """The model, or the way to run it, is not supported. The message has one line per reason."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A diffusers model: a folder or a hub id.

    variant: as in `from_pretrained`, for example fp16
    allow_pickle: whether weights may be pickles where there is no safetensors file
    """

    path: str
    revision: str | None = None
    variant: str | None = None
    allow_pickle: bool = False

    @property
    def is_folder(self) -> bool:
        return Path(self.path).is_dir()

    def from_pretrained_kwargs(self) -> dict[str, Any]:
        given = {"revision": self.revision, "variant": self.variant}
        # With None, diffusers prefers safetensors.
        return {name: value for name, value in given.items() if value} | {
            "use_safetensors": None if self.allow_pickle else True
        }


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a part of a model runs.

    device: auto, cpu, cuda or simulated; attention: sdpa or xformers
    compile_cache: a folder; if given, the U-Net is compiled and the result is kept there
    faults: a folder of faults, for a simulated device only (simulated_faults)
    """

    device: str = "auto"
    dtype: str = "float32"
    attention: str = "sdpa"
    compile_cache: str | None = None
    faults: str | None = None

    @property
    def is_simulated(self) -> bool:
        return self.device == "simulated"

    def torch_device(self) -> torch.device:
        """The torch device. Raises ModelLoadError if it does not exist."""
        available = torch.cuda.is_available()
        if self.device == "cuda" and not available:
            raise ModelLoadError("device: cuda was asked for, but torch sees no CUDA device here")
        name = ("cuda" if available else "cpu") if self.device == "auto" else self.device
        return torch.device(name)

    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the HTTP side needs to know about a model, read from its configuration files only."""

    scheduler_config: Mapping[str, Any]
    scale_factor: int  # image pixels per latent, in each direction
    default_height: int  # pixels
    default_width: int  # pixels


def load_model_info(source: ModelSource, with_weights: bool = False) -> ModelInfo:
    """Reads no weights. Raises ModelLoadError with everything that is wrong.

    with_weights: also checks a folder's tokenizers and weights, which only loading needs
    """
    name = _pipeline_name(source)
    configs: dict[str, Mapping[str, Any]] = {}
    problems: list[str] = []
    for file, problems_of in (
        (UNET_FILE, unet_problems),
        (VAE_FILE, vae_problems),
        (SCHEDULER_FILE, scheduler_problems),
    ):
        try:
            configs[file] = _read_config(source, file)
            problems += problems_of(configs[file])
        except ConfigFileError as error:
            problems.append(str(error))
    if with_weights and source.is_folder:
        weights = WeightFiles(source.variant, source.allow_pickle)
        problems += part_problems(Path(source.path), PIPELINES[name], weights)
    if problems:
        raise _refusal(source, *problems)
    scale_factor = 2 ** (len(configs[VAE_FILE]["block_out_channels"]) - 1)
    size = sample_size(configs[UNET_FILE])
    assert size is not None, "unet_problems checks it"
    return ModelInfo(configs[SCHEDULER_FILE], scale_factor, size[0] * scale_factor, size[1] * scale_factor)


def load_unet_config(source: ModelSource) -> Mapping[str, Any]:
    """The U-Net's configuration. Raises ModelLoadError for a U-Net that needs more than a prompt."""
    _pipeline_name(source)
    config = _part_config(source, UNET_FILE)
    if problems := list(unet_problems(config)):
        raise _refusal(source, *problems)
    return config


def _part_config(source: ModelSource, file: str) -> Mapping[str, Any]:
    """One configuration file. Raises ModelLoadError if it cannot be read."""
    try:
        return _read_config(source, file)
    except ConfigFileError as error:
        raise _refusal(source, str(error)) from error


def _refusal(source: ModelSource, *problems: str) -> ModelLoadError:
    return ModelLoadError("\n".join(f"model {source.path!r}: {problem}" for problem in problems))


def _read_config(source: ModelSource, file: str) -> Mapping[str, Any]:
    """A configuration file of the model. Raises ConfigFileError."""
    if source.is_folder:
        return read_config(Path(source.path), file)
    hub = import_module("huggingface_hub")
    try:
        found = Path(hub.hf_hub_download(source.path, file, revision=source.revision))
    except hub.errors.RemoteEntryNotFoundError as error:
        raise ConfigFileError(f"{file} is not there") from error
    except (OSError, ValueError) as error:  # unknown model, no access or no network
        reason = str(error).strip().partition("\n")[0]
        raise ConfigFileError(f"{file} cannot be fetched from the hub: {reason}") from error
    return read_config(found.parent, found.name)


def _pipeline_name(source: ModelSource) -> str:
    """The class name of its pipeline. Raises ModelLoadError if that pipeline is not served."""
    try:
        index = _read_config(source, "model_index.json")
    except ConfigFileError as error:
        raise ModelLoadError(f"model {source.path!r} cannot be read: {error}") from error
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise ModelLoadError(f"model {source.path!r} is a {name}; served are {' and '.join(PIPELINES)}")
    if index.get("requires_aesthetics_score"):
        raise ModelLoadError(
            f"model {source.path!r} is an SDXL refiner, which makes no image from a prompt alone"
        )
    return str(name)


@contextmanager
def _loading(source: ModelSource, part: str) -> Iterator[None]:
    """Turns the libraries' errors into a ModelLoadError that names the part."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise _refusal(source, f"its {part} cannot be loaded: {error}") from error


def load_text_pipeline(source: ModelSource, placement: Placement) -> diffusers.DiffusionPipeline:
    """The stock pipeline with only its tokenizers and text encoders, for `encode_prompt`."""
    name = _pipeline_name(source)
    parts: dict[str, Any] = {"unet": None, "vae": None, "feature_extractor": None, "image_encoder": None}
    if name == "StableDiffusionPipeline":
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    with _loading(source, " and ".join(PIPELINES[name])):
        pipeline = getattr(diffusers, name).from_pretrained(
            source.path, dtype=placement.torch_dtype(), **parts, **source.from_pretrained_kwargs()
        )
    weights = WeightFiles(source.variant, source.allow_pickle)
    for part in PIPELINES[name] if source.is_folder else ():  # transformers makes up missing tensors
        _refuse_missing(source, part, weights.lacking(Path(source.path), part, getattr(pipeline, part)))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(placement.torch_device())


def _refuse_missing(source: ModelSource, part: str, missing: Sequence[str]) -> None:
    if missing:
        raise _refusal(source, f"the weights of {part} lack {len(missing)} tensors, such as {missing[0]}")


def load_vae(source: ModelSource, placement: Placement) -> diffusers.AutoencoderKL:
    """The VAE; in float32 where diffusers' pipeline decodes in float32 although the rest is in float16."""
    dtype = placement.torch_dtype()
    if dtype is torch.float16 and _is_upcast(source):
        dtype = torch.float32
    with _loading(source, "vae"):
        vae, loading = diffusers.AutoencoderKL.from_pretrained(
            source.path,
            subfolder="vae",
            dtype=dtype,
            output_loading_info=True,
            **source.from_pretrained_kwargs(),
        )
    _refuse_missing(source, "vae", loading["missing_keys"])
    vae.to(placement.torch_device(), memory_format=torch.channels_last)
    return vae.eval().requires_grad_(False)


def _is_upcast(source: ModelSource) -> bool:
    """Whether diffusers upcasts the model's VAE to float32, as SDXL's own VAE overflows in float16.

    Only SDXL's pipeline reads the key `force_upcast`, and takes it as true if it is absent. The VAEs of
    Stable Diffusion 1.x and 2.x run in float16 in any case.
    """
    if _pipeline_name(source) != "StableDiffusionXLPipeline":
        return False
    return bool(_part_config(source, VAE_FILE).get("force_upcast", True))


class UNet:
    """A U-Net as the engine calls it: rows in, predictions out, always float32 outside.

    embeds_width, pooled_width: widths of the prompt embeddings; time_ids_width: number of time ids; 0: none
    """

    def __init__(
        self,
        module: diffusers.UNet2DConditionModel,
        device: torch.device,
        dtype: torch.dtype,
        is_compiled: bool = False,
    ) -> None:
        self._module = module
        self.is_compiled = is_compiled
        self.device = device
        self.dtype = dtype
        self.in_channels: int = module.config.in_channels
        self.embeds_width: int = module.config.cross_attention_dim
        self._is_xl = module.config.addition_embed_type == "text_time"
        self.pooled_width = self._width_of_pooled()
        self.time_ids_width = NUM_TIME_IDS if self._is_xl else 0

    def __call__(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: Conditions,
    ) -> torch.Tensor:
        """The model's output for every row, [rows, C, h, w] float32.

        latents [rows, C, h, w] float32, timesteps [rows], conditions with as many rows
        """
        added = {"text_embeds": conditions.pooled_prompt_embeds, "time_ids": conditions.time_ids}
        prediction: torch.Tensor = self._module(
            latents.to(self.dtype),
            timesteps,
            encoder_hidden_states=conditions.prompt_embeds,
            added_cond_kwargs=added if self._is_xl else None,
            return_dict=False,
        )[0]
        return prediction.float()

    def _width_of_pooled(self) -> int:
        if not self._is_xl:
            return 0
        config = self._module.config
        time_ids_width = NUM_TIME_IDS * config.addition_time_embed_dim
        return int(config.projection_class_embeddings_input_dim - time_ids_width)


def load_unet(source: ModelSource, placement: Placement) -> UNet:
    """Raises ModelLoadError if the U-Net needs more than a prompt, or if the attention cannot run here."""
    load_unet_config(source)
    device, dtype = placement.torch_device(), placement.torch_dtype()
    with _loading(source, "unet"):
        module, loading = diffusers.UNet2DConditionModel.from_pretrained(
            source.path,
            subfolder="unet",
            dtype=dtype,
            output_loading_info=True,
            **source.from_pretrained_kwargs(),
        )
    _refuse_missing(source, "unet", loading["missing_keys"])
    module.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    _set_attention(module, placement.attention, device, dtype)
    if placement.compile_cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = placement.compile_cache  # read when it first compiles
        # Each row count of each size is compiled separately. Past its limit dynamo silently runs eagerly.
        torch._dynamo.config.recompile_limit = 256
        module.compile(dynamic=False)
    return UNet(module, device, dtype, is_compiled=placement.compile_cache is not None)


def _set_attention(
    module: diffusers.UNet2DConditionModel, attention: str, device: torch.device, dtype: torch.dtype
) -> None:
    processors = import_module("diffusers.models.attention_processor")
    if attention == "sdpa":
        module.set_attn_processor(processors.AttnProcessor2_0())
        return
    query = torch.zeros(1, 8, 2, 32, device=device, dtype=dtype)
    try:
        import_module("xformers.ops").memory_efficient_attention(query, query, query)
    except (ImportError, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelLoadError(
            f"attention: xformers cannot run on {device.type} in {dtype}: {reason}. Use attention: sdpa"
        ) from error
    module.set_attn_processor(processors.XFormersAttnProcessor())
