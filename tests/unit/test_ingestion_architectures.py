"""The shipped configurations, at full size: without weights, as headers of files that have no content."""

import json
import shutil
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

from deployments.engine.model_files import read_config, scheduler_problems, unet_problems, vae_problems
from deployments.ingestion.building import _build_tokenizer
from deployments.ingestion.cache import Staging
from deployments.ingestion.model_entry import IngestionError, ModelToIngest
from deployments.ingestion.recognition import CONFIGS, layout
from deployments.ingestion.recognition import architecture as architecture_name
from deployments.ingestion.single_file import plan_single_file
from deployments.tensor_files.architectures import architecture
from deployments.tensor_files.headers import read_header
from tests import ldm_files

ARCHITECTURES = ("sd15", "sd15-inpainting", "sd21", "sd21-inpainting", "sdxl", "sdxl-inpainting")
CLASSES = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
}
_FAMILIES = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}
_DTYPES = {torch.float16: "F16", torch.int64: "I64"}


def modules(name: str) -> dict[str, Any]:
    """The modules of an architecture on the meta device, in float16."""
    made: dict[str, Any] = {}
    with torch.device("meta"):
        for part, kind in CLASSES.items():
            if (CONFIGS / name / part).is_dir():
                config = dict(read_config(CONFIGS / name / part, "config.json"))
                is_text = part.startswith("text_encoder")
                made[part] = (
                    kind(transformers.CLIPTextConfig(**config)) if is_text else kind.from_config(config)
                )
    return {part: module.half() for part, module in made.items()}


def full_size(path: Path, tensors: Mapping[str, torch.Tensor], **metadata: str) -> Path:
    """A file with the header of these tensors and no content: the file system keeps no block for it."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + prod(tensor.shape) * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def checkpoint(name: str) -> dict[str, torch.Tensor]:
    return ldm_files.tensors(_FAMILIES[name.removesuffix("-inpainting")], modules(name))


@pytest.mark.parametrize(
    ("name", "part", "count"),
    [
        ("sd15", "unet", 859_520_964),
        ("sd21", "unet", 865_910_724),
        ("sdxl", "unet", 2_567_463_684),
        ("sd15", "text_encoder", 123_060_480),
        ("sd21", "text_encoder", 340_387_840),
        ("sdxl", "text_encoder", 123_060_480),
        ("sdxl", "text_encoder_2", 694_659_840),
        ("sd15", "vae", 83_653_863),
        ("sdxl", "vae", 83_653_863),
    ],
)
def test_parameters_are_as_many_as_the_published_models_have(name: str, part: str, count: int) -> None:
    built = architecture(part, read_config(CONFIGS / name / part, "config.json"), name)
    assert built.num_parameters == count


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_configurations_can_be_served(name: str) -> None:
    unet = read_config(CONFIGS / name, "unet/config.json")
    assert unet["in_channels"] == (9 if name.endswith("inpainting") else 4)
    problems = [
        *unet_problems(unet),
        *vae_problems(read_config(CONFIGS / name, "vae/config.json")),
        *scheduler_problems(read_config(CONFIGS / name, "scheduler/scheduler_config.json")),
    ]
    assert problems == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_full_size_files_are_recognised_and_all_their_tensors_found(tmp_path: Path, name: str) -> None:
    path = full_size(tmp_path / "m.safetensors", checkpoint(name))
    header = read_header(path)
    assert architecture_name(header, layout(header)) == name
    plan = plan_single_file(ModelToIngest(str(path)))
    parts = {part.architecture.part: part for part in plan.parts}
    assert parts.keys() == modules(name).keys()
    assert {part: len(found.origins) for part, found in parts.items()} == {
        part: len(module.state_dict()) for part, module in modules(name).items()
    }
    assert set(plan.tokenizers) == {
        part.replace("text_encoder", "tokenizer") for part in parts if "text" in part
    }
    assert plan.pipeline.endswith("InpaintPipeline") == name.endswith("inpainting")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_diffusers_conversion_finds_the_same_tensors(name: str) -> None:
    """diffusers converts the other way round: what it makes of our names are its names."""
    made = modules(name)
    unet = convert_ldm_unet_checkpoint(ldm_files.unet(made["unet"]), made["unet"].config)
    assert unet.keys() == made["unet"].state_dict().keys()
    vae = convert_ldm_vae_checkpoint(ldm_files.vae(made["vae"]), made["vae"].config)
    assert vae.keys() == made["vae"].state_dict().keys()
    part, prefix = ("text_encoder_2", "conditioner.embedders.1.model.")
    if part in made:
        encoder = convert_open_clip_checkpoint(made[part], ldm_files.openclip(made[part], prefix), prefix)
        assert encoder.keys() == made[part].state_dict().keys()


def test_stable_diffusion_2_at_512_pixels_predicts_epsilon_and_at_768_v(tmp_path: Path) -> None:
    """ComfyUI's rule: a bias with values far apart is of a model that predicts v."""
    tensors = checkpoint("sd21")
    path = full_size(tmp_path / "base.safetensors", tensors)
    plan = plan_single_file(ModelToIngest(str(path)))
    assert plan.scheduler["prediction_type"] == "epsilon"
    assert plan.parts[0].architecture.config["sample_size"] == 64

    bias = read_header(path).tensors[
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    ]
    values = torch.linspace(-0.3, 0.3, (bias.end - bias.start) // 2, dtype=torch.float16)
    with path.open("r+b") as file:
        file.seek(bias.start)
        file.write(values.numpy().tobytes())
    plan = plan_single_file(ModelToIngest(str(path)))
    assert plan.scheduler["prediction_type"] == "v_prediction"
    assert plan.parts[0].architecture.config["sample_size"] == 96
    plan = plan_single_file(ModelToIngest(str(path), prediction_type="epsilon"))
    assert plan.scheduler["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ({"cross": 1280}, "is an SDXL refiner"),
        ({"channels": 8}, "is an instruct-pix2pix model"),
        ({"channels": 5}, "is a model for depth maps"),
        (
            {"cross": 640},
            "has an architecture that is not known: its U-Net reads 4 channels and prompts 640 wide",
        ),
    ],
)
def test_other_architectures_are_refused_by_name(
    tmp_path: Path, shape: Mapping[str, int], sentence: str
) -> None:
    cross, channels = shape.get("cross", 768), shape.get("channels", 4)
    prefix = "model.diffusion_model.input_blocks."
    tensors = {
        f"{prefix}0.0.weight": torch.empty(320, channels, 3, 3, dtype=torch.float16),
        f"{prefix}1.1.transformer_blocks.0.attn2.to_k.weight": torch.empty(320, cross, dtype=torch.float16),
        "cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.empty(
            768, dtype=torch.float16
        ),
    }
    path = full_size(tmp_path / "m.safetensors", tensors)
    with pytest.raises(IngestionError, match=sentence):
        plan_single_file(ModelToIngest(str(path)))


@pytest.mark.parametrize(
    ("name", "tokenizer", "pad"),
    [
        ("sd15", "tokenizer", 49407),
        ("sd21", "tokenizer", 0),
        ("sdxl", "tokenizer", 49407),
        ("sdxl", "tokenizer_2", 0),
    ],
)
def test_clips_tokenizers(tmp_path: Path, name: str, tokenizer: str, pad: int) -> None:
    """The token ids that CLIP has for a text. OpenCLIP pads with `!`, whose id is 0."""
    plan = plan_single_file(ModelToIngest(str(full_size(tmp_path / "m.safetensors", checkpoint(name)))))
    _build_tokenizer(tokenizer, plan.tokenizers[tokenizer], Staging(tmp_path))
    made = transformers.CLIPTokenizer.from_pretrained(tmp_path / "parts" / tokenizer)
    assert made("a photo of an astronaut").input_ids == [49406, 320, 1125, 539, 550, 18376, 49407]
    assert (len(made), made.model_max_length, made.pad_token_id) == (49408, 77, pad)


def test_block_counts_that_differ_are_refused(tmp_path: Path) -> None:
    """Single files have one number of layers for all blocks."""
    shutil.copytree(CONFIGS / "sd15", tmp_path / "config")
    unet = tmp_path / "config" / "unet" / "config.json"
    unet.write_text(json.dumps(json.loads(unet.read_text()) | {"layers_per_block": [1, 2, 2, 2]}))
    path = full_size(tmp_path / "m.safetensors", checkpoint("sd15"))
    with pytest.raises(IngestionError, match="layers_per_block must be a number for single files"):
        plan_single_file(ModelToIngest(str(path), config=str(tmp_path / "config")))
