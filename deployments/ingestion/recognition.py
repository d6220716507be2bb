"""Tells what a single file is by the names and shapes in its header, and refuses what is no whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.ingestion.model_entry import IngestionError
from deployments.tensor_files.headers import Header
from deployments.tensor_files.kinds import EMA_PREFIX, UNET_PREFIX, lone_part, other_model

CONFIGS = Path(__file__).parent / "configs"
CLIP_PREFIXES = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN_CLIP_PREFIXES = ("cond_stage_model.model.", "conditioner.embedders.0.model.")
OPEN_CLIP_2_PREFIX = "conditioner.embedders.1.model."
VAE_PREFIXES = ("first_stage_model.", "vae.")

# Widths of the prompt embeddings, by which the U-Nets differ.
_FAMILIES: Mapping[int, str] = {768: "sd15", 1024: "sd21", 2048: "sdxl"}
_REFINER_WIDTH = 1280
_NUM_CHANNELS: Mapping[int, str] = {4: "", 9: "-inpainting"}
_OTHER_INPUTS: Mapping[int, str] = {
    5: "a model for depth maps",
    7: "an upscaler",
    8: "an instruct-pix2pix model",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a single file are.

    unet_prefix: of the U-Net's names; is_ema: its names then have no dots
    text: the prefix and whether the text encoder is OpenCLIP's, for each text encoder
    has_vae: whether the file has a VAE
    """

    unet_prefix: str
    is_ema: bool
    text: Mapping[str, tuple[str, bool]]
    has_vae: bool


def layout(header: Header) -> Layout:
    """Raises IngestionError for a file that is not a whole Stable Diffusion checkpoint."""
    names = header.tensors
    has_unet = any(name.startswith(UNET_PREFIX + "input_blocks.") for name in names)
    is_ema = not has_unet and any(
        name.startswith(EMA_PREFIX + "diffusion_modelinput_blocks") for name in names
    )
    if not (has_unet or is_ema) or other_model(header):
        raise _refusal(header)
    _refuse_quantised(header)
    text = _text_layout(header)
    if not text:
        raise IngestionError(
            f"{header.path} has a U-Net but no text encoder: take the whole checkpoint, or make a diffusers "
            "folder of its parts"
        )
    has_vae = any(name.startswith(VAE_PREFIXES) and ".decoder." in name for name in names)
    return Layout(EMA_PREFIX if is_ema else UNET_PREFIX, is_ema, text, has_vae)


def _text_layout(header: Header) -> dict[str, tuple[str, bool]]:
    names = header.tensors
    found: dict[str, tuple[str, bool]] = {}
    for prefixes, is_open_clip in ((OPEN_CLIP_PREFIXES, True), (CLIP_PREFIXES, False)):
        for prefix in prefixes:
            if any(name.startswith(prefix) for name in names):
                found["text_encoder"] = (prefix, is_open_clip)
    if any(name.startswith(OPEN_CLIP_2_PREFIX) for name in names):
        found["text_encoder_2"] = (OPEN_CLIP_2_PREFIX, True)
    return found


def architecture(header: Header, where: Layout) -> str:
    """The name of the configuration folder in CONFIGS. Raises IngestionError if there is none."""
    width, channels = _cross_attention_width(header, where), _in_channels(header, where)
    if width == _REFINER_WIDTH:
        raise IngestionError(
            f"{header.path} is an SDXL refiner, which makes no image from a prompt alone: take the base model"
        )
    if channels is not None and channels in _OTHER_INPUTS:
        raise IngestionError(
            f"{header.path} is {_OTHER_INPUTS[channels]}: its U-Net reads {channels} channels, "
            "which is not served"
        )
    if width is None or channels is None or width not in _FAMILIES or channels not in _NUM_CHANNELS:
        raise IngestionError(
            f"{header.path} has an architecture that is not known: its U-Net reads {channels} channels and "
            f"prompts {width} wide. Give a folder with its configurations as `config`"
        )
    return _FAMILIES[width] + _NUM_CHANNELS[channels]


def _cross_attention_width(header: Header, where: Layout) -> int | None:
    end = "transformer_blocks.0.attn2.to_k.weight"
    end = end.replace(".", "") if where.is_ema else end
    for name, tensor in header.tensors.items():
        if name.startswith(where.unet_prefix) and name.endswith(end) and tensor.shape:
            return tensor.shape[-1]
    return None


def _in_channels(header: Header, where: Layout) -> int | None:
    name = "diffusion_modelinput_blocks00weight" if where.is_ema else "input_blocks.0.0.weight"
    shape = header.shape(where.unet_prefix + name)
    return shape[1] if shape and len(shape) > 1 else None


def _refuse_quantised(header: Header) -> None:
    """Weights with a scale beside them would be read wrong without it."""
    for name in header.tensors:
        if (
            name.endswith((".scale_weight", ".weight_scale", ".comfy_quant", ".absmax"))
            or name == "scaled_fp8"
        ):
            raise IngestionError(
                f"{header.path} has quantised weights ({name}), which are not served: take its float16 file"
            )


def _refusal(header: Header) -> IngestionError:
    what = other_model(header) or lone_part(header)
    if what is None:
        some = ", ".join(sorted(header.tensors)[:3]) or "none"
        return IngestionError(
            f"{header.path} is no Stable Diffusion checkpoint that is known: it has no tensors under "
            f"{UNET_PREFIX}, but {some}"
        )
    return IngestionError(f"{header.path} is {what}. A whole Stable Diffusion checkpoint is needed here")
