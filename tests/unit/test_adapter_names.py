"""Names of layers in adapter files: resolved to the layers that diffusers, PEFT and LyCORIS take them for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lycoris.utils import convert_diffusers_name_to_compvis

from deployments.adapters.files import AdapterFileError, read_adapter_file
from deployments.adapters.reading import digest_of, read_weights
from deployments.adapters.targets import ModelTargets, targets_of_configs, targets_of_model
from deployments.engine.adapters import Target
from deployments.engine.model_source import ModelSource
from deployments.ingestion.recognition import CONFIGS
from tests import adapter_files, tiny_models

Folder = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]


def targets(model_folder: Folder, family: str) -> ModelTargets:
    return targets_of_model(ModelSource(str(model_folder(family))))


def real(name: str) -> ModelTargets:
    """A real architecture, without weights."""
    parts = ("unet", "text_encoder", "text_encoder_2")
    files = {part: CONFIGS / name / part / "config.json" for part in parts}
    return targets_of_configs(
        {part: json.loads(file.read_bytes()) for part, file in files.items() if file.exists()}
    )


def in_style(model: ModelTargets, name: Callable[[str, str, str], str | None]) -> Tensors:
    """A LoRA of all layers. name: the key by part, layer and role, or None to leave it out"""
    found: Tensors = {}
    for part, layers in model.parts.items():
        for module, target in layers.items():
            for role, factor in adapter_files.lora(target).items():
                if (key := name(part, module, role)) is not None:
                    found[key] = factor
    return found


def peft(part: str, module: str, role: str) -> str:
    return f"{part}.{module}.lora_{'A' if role == 'down' else 'B'}.weight"


def diffusers_style(part: str, module: str, role: str) -> str:
    if part == "unet":
        return f"unet.{module}.lora.{role}.weight"
    return f"{part}.{module}.lora_linear_layer.{role}.weight"


def old_attention(part: str, module: str, role: str) -> str | None:
    layer, _, last = module.removesuffix(".0").rpartition(".")
    if part != "unet" or not last.startswith("to_"):
        return None
    return f"unet.{layer}.processor.{last}_lora.{role}.weight"


STYLES = {"peft": peft, "diffusers": diffusers_style, "old attention": old_attention}


@pytest.mark.parametrize("style", ["kohya", *STYLES])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_files_add_what_they_add_in_diffusers(
    model_folder: Folder, tmp_path: Path, family: str, style: str
) -> None:
    torch.manual_seed(1)
    model = targets(model_folder, family)
    is_kohya = style == "kohya"
    tensors = adapter_files.kohya(model, model.parts) if is_kohya else in_style(model, STYLES[style])
    path = adapter_files.save(tmp_path / "a.safetensors", tensors)
    pipeline = tiny_models.build(family)
    pipeline.load_lora_weights(str(path), adapter_name="a")

    compared = 0
    for part in model.parts:
        weights = read_weights(path, digest_of(path), part, model)
        for module, layer in getattr(pipeline, part).named_modules():
            if "a" in getattr(layer, "lora_A", {}):
                wanted = layer.get_delta_weight("a")
                assert torch.allclose(
                    adapter_files.delta(weights[module], wanted.shape), wanted, atol=1e-6
                ), module
                compared += 1
    changed = sum(len(read_weights(path, digest_of(path), part, model)) for part in model.parts)
    # diffusers leaves out kohya's names of two layers of SDXL's size embeddings, and its text projection.
    assert changed - (3 if is_kohya and family == "sdxl" else 0) == compared > 20


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_every_layer_of_a_real_architecture_is_found_by_each_of_its_names(name: str) -> None:
    model, converted = real(name), 0
    for part, layers in model.parts.items():
        for module in layers:
            stem = adapter_files.kohya_stem(part, module, name == "sdxl")
            in_ldm = convert_diffusers_name_to_compvis(stem)
            if name != "sdxl":  # LyCORIS counts an attention that this block has not
                in_ldm = in_ldm.replace("output_blocks_2_2_conv", "output_blocks_2_1_conv")
            converted += in_ldm != stem
            bare = module.removeprefix("text_model.")
            dotted = (
                f"{part}.{module}",
                *(() if part == "unet" else (f"{part}.text_model.{bare}", f"{part}.{bare}")),
            )
            for spelling in (stem, in_ldm, *dotted):
                assert model.find(spelling) == (part, module), spelling
    assert converted > len(model.parts["unet"]) * 0.8


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "unet.",
        "base_model.model.",
        "unet.base_model.model.",
        "lora_unet_",
        "lycoris_",
        "diffusion_model.",
    ],
)
@pytest.mark.parametrize("joint", [".", "_"])
def test_prefixes_of_the_unet(model_folder: Folder, prefix: str, joint: str) -> None:
    model = targets(model_folder, "sd1")
    module = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
    assert model.find(prefix + module.replace(".", joint)) == ("unet", module)
    in_ldm = f"{prefix}{'input_blocks.3.1.transformer_blocks.0.attn2.to_out.0'.replace('.', joint)}"
    assert model.find(in_ldm) == ("unet", module)


@pytest.mark.parametrize(
    ("family", "stem", "part"),
    [
        ("sd1", "lora_te_text_model_encoder_layers_0_mlp_fc1", "text_encoder"),
        ("sdxl", "lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder"),
        ("sdxl", "lora_te2_text_model_encoder_layers_0_mlp_fc1", "text_encoder_2"),
        ("sdxl", "lora_te2_transformer_resblocks_0_mlp_c_fc", "text_encoder_2"),
        ("sdxl", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "text_encoder_2"),
        ("sdxl", "text_encoder_2.encoder.layers.0.mlp.fc1", "text_encoder_2"),
        ("sdxl", "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1", "text_encoder_2"),
        ("sd1", "text_encoder.base_model.model.text_model.encoder.layers.0.mlp.fc1", "text_encoder"),
    ],
)
def test_names_of_text_encoders(model_folder: Folder, family: str, stem: str, part: str) -> None:
    found = targets(model_folder, family).find(stem)
    assert found is not None
    assert found[0] == part
    assert found[1].endswith("encoder.layers.0.mlp.fc1")


@pytest.mark.parametrize("key", ["lora_A.weight", "lora_A.default.weight", "lora_A.default_0.weight"])
def test_peft_may_name_its_adapter_in_each_key(model_folder: Folder, tmp_path: Path, key: str) -> None:
    model = targets(model_folder, "sd1")
    factors = adapter_files.lora(model.parts["unet"]["time_embedding.linear_1"])
    stem = "base_model.model.time_embedding.linear_1"
    tensors = {f"{stem}.{key}": factors["down"], f"{stem}.{key.replace('A', 'B', 1)}": factors["up"]}
    path = adapter_files.save(tmp_path / "a.safetensors", tensors)
    assert read_adapter_file(path, model).ranks == {"unet": adapter_files.RANK}


def test_one_layer_by_two_names_is_refused(model_folder: Folder, tmp_path: Path) -> None:
    model = targets(model_folder, "sd1")
    factors = adapter_files.lora(Target(16, 64))
    tensors = {}
    for stem in ("unet.time_embedding.linear_1", "lora_unet_time_embedding_linear_1"):
        tensors |= {f"{stem}.lora_down.weight": factors["down"], f"{stem}.lora_up.weight": factors["up"]}
    path = adapter_files.save(tmp_path / "a.safetensors", tensors)
    with pytest.raises(
        AdapterFileError, match=r"two keys for one thing: .*time_embedding.* and .*time_embedding"
    ):
        read_adapter_file(path, model)


def test_equal_architectures_have_equal_keys(model_folder: Folder) -> None:
    keys = [targets(model_folder, family).key for family in tiny_models.FAMILIES]
    assert len(set(keys)) == len(keys)
    assert targets(model_folder, "sd1").key == keys[0]
    assert targets(model_folder, "sd1-inpainting").key != keys[0], "its first convolution reads more channels"
