"""Tiny randomly initialised models of every family, in diffusers format: real code paths at little cost."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SHAPES_MODEL = Path(__file__).parents[1] / "models" / "shapes"
_WIDTH = 32
_NOISE_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FAMILIES = ("sd1", "sd2", "sdxl")
INPAINTING = ("sd1-inpainting", "sdxl-inpainting")  # their U-Nets read a mask and the masked picture


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(SHAPES_MODEL, subfolder="tokenizer")


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def _unet(**config: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=32,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        **config,
    )


def build(family: str, seed: int = 0) -> DiffusionPipeline:
    """A pipeline of the family (one of FAMILIES or INPAINTING). seed: of its weights"""
    torch.manual_seed(seed)
    if family not in INPAINTING:
        return _build(family, in_channels=4)
    pipeline = _build(family.removesuffix("-inpainting"), in_channels=9)
    if isinstance(pipeline, StableDiffusionXLPipeline):
        return StableDiffusionXLInpaintPipeline(**pipeline.components, add_watermarker=False)
    return StableDiffusionInpaintPipeline(
        **pipeline.components | {"safety_checker": None}, requires_safety_checker=False
    )


def _build(family: str, in_channels: int) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    tokenizer = _tokenizer()
    if family == "sdxl":
        xl_unet = _unet(
            in_channels=in_channels,
            cross_attention_dim=2 * _WIDTH,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + _WIDTH,
            use_linear_projection=True,
        )
        return StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(tokenizer)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer)),
            tokenizer=tokenizer,
            tokenizer_2=_tokenizer(),
            unet=xl_unet,
            scheduler=EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **_NOISE_SCHEDULE),
            add_watermarker=False,
        )
    if family == "sd2":
        unet = _unet(
            in_channels=in_channels,
            cross_attention_dim=_WIDTH,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
        )
        scheduler = DDIMScheduler(
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            **_NOISE_SCHEDULE,
        )
    else:
        unet = _unet(in_channels=in_channels, cross_attention_dim=_WIDTH, attention_head_dim=4)
        scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1, **_NOISE_SCHEDULE)
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def copy(folder: Path, target: Path, file: str | None = None, **changes: Any) -> Path:
    """A copy of a model's folder. changes: keys to change in one of its JSON files; None removes a key"""
    shutil.copytree(folder, target)
    if file is not None:
        path = target / file
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return target


def use_variant(folder: Path, part: str, variant: str) -> None:
    """Renames a part's weights to those of a variant."""
    for path in list((folder / part).glob("*.safetensors")):
        path.rename(path.with_suffix(f".{variant}.safetensors"))


def use_pickle(folder: Path, part: str) -> None:
    """Replaces a part's weights by a pickle."""
    for path in list((folder / part).glob("*.safetensors")):
        stem = "pytorch_model" if path.stem == "model" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()


def drop_tensor(folder: Path, part: str, end: str) -> None:
    """Removes a tensor from a part's weights: the first whose name has this end."""
    [path] = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    del tensors[next(name for name in sorted(tensors) if name.endswith(end))]
    save_file(tensors, path, metadata={"format": "pt"})
