"""Loading a model in diffusers format: which family it is, and its parts on a device, in a dtype.

Stable Diffusion 1.x and 2.x (epsilon or v-prediction) and SDXL. What cannot be served is refused here, at
start, with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import diffusers
import torch

from deployments.engine.conditions import NUM_TIME_IDS, Conditions

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


class ModelLoadError(RuntimeError):
    """The model or the way it is to be run cannot be served; the message says why."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A diffusers model: a folder or a hub id. variant: as in `from_pretrained`, for example fp16."""

    path: str
    revision: str | None = None
    variant: str | None = None

    def hub_kwargs(self) -> dict[str, Any]:
        return {
            name: value for name, value in (("revision", self.revision), ("variant", self.variant)) if value
        }


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a part of a model runs.

    device: auto, cpu, cuda or simulated; attention: sdpa or xformers
    compile_cache: a folder; where it is given the U-Net is compiled, and what was compiled is kept there
    """

    device: str = "auto"
    dtype: str = "float32"
    attention: str = "sdpa"
    compile_cache: str | None = None

    @property
    def is_simulated(self) -> bool:
        return self.device == "simulated"

    def torch_device(self) -> torch.device:
        """Raises ModelLoadError where there is none such."""
        available = torch.cuda.is_available()
        if self.device == "cuda" and not available:
            raise ModelLoadError("device: cuda was asked for, but torch sees no CUDA device here")
        name = ("cuda" if available else "cpu") if self.device == "auto" else self.device
        return torch.device(name)

    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the HTTP side must know of a model, read from its configuration files alone."""

    scheduler_config: Mapping[str, Any]
    scale_factor: int  # image pixels per latent, each way
    default_size: int  # pixels, each way


def load_model_info(source: ModelSource) -> ModelInfo:
    """Reads no weights. Raises ModelLoadError."""
    unet_config = load_unet_config(source)
    hub_kwargs = source.hub_kwargs()
    scheduler_config = diffusers.DDIMScheduler.load_config(source.path, subfolder="scheduler", **hub_kwargs)
    vae_config = diffusers.AutoencoderKL.load_config(source.path, subfolder="vae", **hub_kwargs)
    scale_factor = 2 ** (len(vae_config["block_out_channels"]) - 1)
    return ModelInfo(scheduler_config, scale_factor, unet_config["sample_size"] * scale_factor)


def load_unet_config(source: ModelSource) -> Mapping[str, Any]:
    """Raises ModelLoadError for a U-Net that needs more than a prompt."""
    _pipeline_name(source)
    config: Mapping[str, Any] = diffusers.UNet2DConditionModel.load_config(
        source.path, subfolder="unet", **source.hub_kwargs()
    )
    _refuse_unserved(config, source)
    return config


def _pipeline_name(source: ModelSource) -> str:
    """The class of its pipeline. Raises ModelLoadError for one that is not served."""
    try:
        index = diffusers.DiffusionPipeline.load_config(source.path, **source.hub_kwargs())
    except OSError as error:
        raise ModelLoadError(f"model {source.path!r} cannot be read: {error}") from error
    name: str = index["_class_name"]
    if name not in _PIPELINES:
        raise ModelLoadError(f"model {source.path!r} is a {name}; served are {' and '.join(_PIPELINES)}")
    if index.get("requires_aesthetics_score"):
        raise ModelLoadError(
            f"model {source.path!r} is an SDXL refiner, which makes no image from a prompt alone"
        )
    return name


def load_text_pipeline(source: ModelSource, placement: Placement) -> diffusers.DiffusionPipeline:
    """The stock pipeline with its tokenizers and text encoders and nothing else: for `encode_prompt`."""
    name = _pipeline_name(source)
    parts: dict[str, Any] = {"unet": None, "vae": None, "feature_extractor": None, "image_encoder": None}
    if name == "StableDiffusionPipeline":
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    pipeline = getattr(diffusers, name).from_pretrained(
        source.path, dtype=placement.torch_dtype(), **parts, **source.hub_kwargs()
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(placement.torch_device())


def load_vae(source: ModelSource, placement: Placement) -> diffusers.AutoencoderKL:
    dtype = placement.torch_dtype()
    hub_kwargs = source.hub_kwargs()
    config = diffusers.AutoencoderKL.load_config(source.path, subfolder="vae", **hub_kwargs)
    if dtype is torch.float16 and config.get("force_upcast", True):
        dtype = torch.float32  # this VAE overflows in float16; diffusers upcasts it just so
    vae = diffusers.AutoencoderKL.from_pretrained(source.path, subfolder="vae", dtype=dtype, **hub_kwargs)
    vae.to(placement.torch_device(), memory_format=torch.channels_last)
    return vae.eval().requires_grad_(False)


class UNet:
    """A U-Net as the engine calls it: rows in, predictions out, float32 whatever it computes in.

    embeds_width, pooled_width: of the prompt embeddings that it takes; time_ids_width: their number. 0: none
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

        latents [rows, C, h, w] float32, timesteps [rows], conditions of as many rows
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
    """Raises ModelLoadError for a U-Net that needs more than a prompt, or an attention that cannot run."""
    load_unet_config(source)
    device, dtype = placement.torch_device(), placement.torch_dtype()
    module = diffusers.UNet2DConditionModel.from_pretrained(
        source.path, subfolder="unet", dtype=dtype, **source.hub_kwargs()
    )
    module.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    _set_attention(module, placement.attention, device, dtype)
    if placement.compile_cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = placement.compile_cache  # read when it first compiles
        # Each row count of each size is compiled by itself; past its limit dynamo would quietly run eagerly.
        torch._dynamo.config.recompile_limit = 256
        module.compile(dynamic=False)
    return UNet(module, device, dtype, is_compiled=placement.compile_cache is not None)


def _refuse_unserved(config: Mapping[str, Any], source: ModelSource) -> None:
    given = config.get
    needs = {
        "in_channels": given("in_channels") != given("out_channels") and "an image to edit",
        "time_cond_proj_dim": given("time_cond_proj_dim") is not None and "its guidance embedded",
        "class_embed_type": given("class_embed_type") is not None and "class labels",
        "encoder_hid_dim_type": given("encoder_hid_dim_type") is not None and "projected conditions",
        "addition_embed_type": given("addition_embed_type") not in (None, "text_time") and "more than a text",
    }
    for key, need in needs.items():
        if need:
            raise ModelLoadError(
                f"model {source.path!r}: its U-Net's {key} says that it needs {need}, which is not served"
            )


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
