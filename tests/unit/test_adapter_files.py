"""Files that cannot be used: each says what it is, what does not fit, and what is allowed."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.adapters.files import AdapterFileError, read_adapter_file
from deployments.adapters.reading import digest_of, read_weights
from deployments.adapters.targets import ModelTargets, targets_of_configs, targets_of_model
from deployments.engine.adapters import Target
from deployments.engine.model_source import ModelSource
from deployments.ingestion.recognition import CONFIGS
from tests import adapter_files as files
from tests.adapter_files import save_layer, shape_in

Folder = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]
STEM = "lora_unet_time_embedding_linear_1"


@pytest.fixture(scope="module")
def model(model_folder: Folder) -> ModelTargets:
    return targets_of_model(ModelSource(str(model_folder("sd1"))))


def real(name: str) -> ModelTargets:
    parts = ("unet", "text_encoder", "text_encoder_2")
    found = {part: CONFIGS / name / part / "config.json" for part in parts}
    return targets_of_configs(
        {part: json.loads(file.read_bytes()) for part, file in found.items() if file.exists()}
    )


def refusal(path: Path, model: ModelTargets, **limits: Any) -> str:
    with pytest.raises(AdapterFileError) as error:
        read_adapter_file(path, model, **limits)
    assert str(path.parent) not in str(error.value), "folders of the server are nobody's business"
    return str(error.value)


def to_text(width: int) -> Tensors:
    """A LoRA of one layer that reads prompts of this width."""
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    return {f"{stem}.lora_{role}.weight": one for role, one in files.lora(Target(width, 640)).items()}


@pytest.mark.parametrize(
    ("tensors", "name", "sentence"),
    [
        (to_text(2048), "sd15", "a.safetensors is for SDXL; this model is SD 1"),
        (to_text(768), "sdxl", "a.safetensors is for SD 1; this model is SDXL"),
        (to_text(1024), "sd15", "a.safetensors is for SD 2; this model is SD 1"),
        (to_text(32), "sd21", "is for one whose U-Net reads prompts 32 wide; this model is SD 2"),
        (
            {"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(1)},
            "sd15",
            "is for a model with two text encoders, such as SDXL; this model is SD 1",
        ),
        (
            {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 2)},
            "sd15",
            "is for another kind of model, such as Flux or Stable Diffusion 3; this model is SD 1",
        ),
        (
            {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 2)},
            "sdxl",
            "is for another kind of model, such as Flux",
        ),
    ],
)
def test_adapters_of_other_families(tmp_path: Path, tensors: Tensors, name: str, sentence: str) -> None:
    assert sentence in refusal(files.save(tmp_path / "a.safetensors", tensors), real(name))


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "is a whole checkpoint, not an adapter"),
        ("first_stage_model.encoder.conv_in.weight", "is a VAE alone"),
        ("emb_params", "is a textual inversion, not an adapter"),
        ("control_model.input_hint_block.0.weight", "is a ControlNet, not an adapter"),
        ("down_blocks.0.resnets.0.conv1.weight", "is a U-Net alone"),
        ("something", "is no adapter: it has something"),
    ],
)
def test_what_is_no_adapter(model: ModelTargets, tmp_path: Path, key: str, sentence: str) -> None:
    assert sentence in refusal(files.save(tmp_path / "a.safetensors", {key: torch.ones(1)}), model)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"PK\x03\x04" + bytes(range(1, 60)), "is a pickle, which can run any code"),
        (b"", "is not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS"),
        (b"GGUF" + bytes(20), "is a GGUF file"),
        (struct.pack("<Q", 9_000_000) + b"{" * 100, "is not a safetensors file"),
        (struct.pack("<Q", 2) + b"{}", "is empty: it has no tensors"),
        (struct.pack("<Q", 20) + b"[" * 20, "is not a safetensors file"),
    ],
)
def test_what_is_no_safetensors_file(
    model: ModelTargets, tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert sentence in refusal(path, model)


def test_names_of_pickles_folders_and_files_that_are_not_there(model: ModelTargets, tmp_path: Path) -> None:
    pickle = tmp_path / "a.ckpt"
    pickle.write_bytes(b"x")
    assert "is a pickle" in refusal(pickle, model)
    assert "a.safetensors is no file" in refusal(tmp_path / "a.safetensors", model)
    (folder := tmp_path / "b.safetensors").mkdir()
    assert "b.safetensors is no file" in refusal(folder, model)


def test_a_limit_on_bytes(model: ModelTargets, tmp_path: Path) -> None:
    path = files.save(tmp_path / "a.safetensors", files.kohya(model))
    assert "bytes; up to 1,000 are allowed" in refusal(path, model, max_bytes=1000)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-1])
    assert "cut.safetensors is truncated" in refusal(cut, model)


def test_unknown_keys_are_counted_and_listed(model: ModelTargets, tmp_path: Path) -> None:
    tensors = files.kohya(model)
    for number in range(7):
        tensors[f"lora_unet_strange_{number}.lora_down.weight"] = torch.ones(2, 2)
    tensors[f"{STEM}.oft_blocks"] = torch.ones(2, 2)
    message = refusal(files.save(tmp_path / "a.safetensors", tensors), model)
    assert f"has 8 keys (of {len(tensors)}) that are for no layer of this model" in message
    assert "lora_unet_strange_0.lora_down.weight, " in message
    assert message.endswith("lora_unet_strange_4.lora_down.weight and 3 more")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lora_up.weight": None}, "weights cannot be made: one is missing, or they are of two kinds"),
        ({"lora_down.weight": None}, "cannot be made: one is missing"),
        ({"lora_down.weight": None, "lora_up.weight": None}, f"of {STEM}.alpha the layer's weights cannot"),
        ({"hada_w1_a": (64, 2)}, "they are of two kinds"),
        ({"lora_mid.weight": (2, 3)}, "lora_mid.weight has the shape [2, 3]; .* it must be [2, 2]"),
        (
            {"lora_up.weight": (64, 3)},
            "lora_up.weight has the shape [64, 3]; for time_embedding.linear_1 of ",
        ),
        ({"lora_up.weight": (64, 3)}, "it must be [64, 2]"),
        ({"lora_down.weight": (2, 17)}, "lora_down.weight has the shape [2, 17]; .* must be [2, 16]"),
        ({"lora_down.weight": (2, 16, 3, 3)}, "must be [2, 16]"),
        ({"lora_down.weight": (0, 16), "lora_up.weight": (64, 0)}, "lora_down.weight has no values"),
        ({"lora_down.weight": (32,)}, "lora_down.weight has the shape [32]"),
        ({"alpha": (3,)}, "alpha has the shape [3]"),
        ({"dora_scale": (63, 1)}, "dora_scale has the shape [63, 1]; .* it must be [64, 1]"),
        ({"diff_b": (63,)}, "diff_b has the shape [63]"),
    ],
)
def test_factors_that_do_not_go_together(
    model: ModelTargets, tmp_path: Path, change: dict[str, tuple[int, ...] | None], sentence: str
) -> None:
    factors = files.lora_file(*shape_in(model, "linear")) | {"alpha": torch.ones(())}
    for end, shape in change.items():
        if shape is None:
            del factors[end]
        else:
            factors[end] = torch.ones(shape)
    message = refusal(save_layer(tmp_path, "linear", factors), model)
    for piece in sentence.split(".*"):
        assert piece in message


@pytest.mark.parametrize(
    ("factors", "sentence"),
    [
        ({"lokr_w1": (3, 4), "lokr_w2": (21, 4)}, "lokr_w1 has the shape [3, 4]"),
        ({"lokr_w1": (2, 4), "lokr_w2": (31, 4)}, "lokr_w2 has the shape [31, 4]; .* it must be [32, 4]"),
        ({"hada_w1_a": (64, 2), "hada_w1_b": (2, 16), "hada_w2_a": (64, 2)}, "one is missing"),
        ({"diff": (64, 15)}, "diff has the shape [64, 15]"),
        ({"diff": (64, 16), "alpha": ()}, "they are of two kinds"),
    ],
)
def test_other_kinds_that_do_not_go_together(
    model: ModelTargets, tmp_path: Path, factors: dict[str, tuple[int, ...]], sentence: str
) -> None:
    path = save_layer(tmp_path, "linear", {end: torch.ones(shape) for end, shape in factors.items()})
    message = refusal(path, model)
    for piece in sentence.split(".*"):
        assert piece in message


def test_layers_without_a_low_rank_or_a_bias(model: ModelTargets, tmp_path: Path) -> None:
    norm = "lora_unet_down_blocks_0_resnets_0_norm1"
    factors = {f"{norm}.lora_down.weight": torch.ones(2, 16), f"{norm}.lora_up.weight": torch.ones(16, 2)}
    message = refusal(files.save(tmp_path / "a.safetensors", factors), model)
    assert "cannot change down_blocks.0.resnets.0.norm1, which is no linear layer or convolution" in message
    to_q = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    path = files.save(tmp_path / "b.safetensors", {f"{to_q}.diff_b": torch.ones(32)})
    assert "would change a bias, and " in refusal(path, model)


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        ({"dtype": "I8", "shape": [2, 16], "data_offsets": [0, 32]}, "stored as I8; allowed are F64, F32"),
        ({"dtype": "F32", "shape": [2, 16], "data_offsets": [0, 64]}, "not as many bytes as its shape says"),
        ({"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}, "not as many bytes as its shape says"),
        (
            {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 128]},
            "not as many bytes as its shape says",
        ),
        ({"dtype": "F32", "shape": [64, 2], "data_offsets": [0, 512]}, "is stored in the place of another"),
    ],
)
def test_storage(model: ModelTargets, tmp_path: Path, stored: dict[str, Any], sentence: str) -> None:
    down, up = f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight"
    header = {down: stored, up: {"dtype": "F32", "shape": [64, 2], "data_offsets": [128, 640]}}
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(640))
    assert sentence in refusal(path, model)


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ("[1]", "its metadata lora_adapter_metadata is no JSON object"),
        ("{", "its metadata lora_adapter_metadata is no JSON object"),
        ('{"unet.lora_alpha": "8"}', "the alpha of unet in its metadata is '8'"),
        ('{"unet.lora_alpha": NaN}', "the alpha of unet in its metadata is nan"),
    ],
)
def test_metadata(model: ModelTargets, tmp_path: Path, metadata: str, sentence: str) -> None:
    factors = files.lora_file(*shape_in(model, "linear"))
    assert sentence in refusal(
        save_layer(tmp_path, "linear", factors, {"lora_adapter_metadata": metadata}), model
    )


@pytest.mark.parametrize("end", ["lora_down.weight", "lora_up.weight", "alpha"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e39])
def test_values_that_are_not_finite(model: ModelTargets, tmp_path: Path, end: str, value: float) -> None:
    factors = files.lora_file(*shape_in(model, "linear")) | {"alpha": torch.ones(1)}
    factors[end] = factors[end].double()
    factors[end].view(-1)[-1] = value
    path = save_layer(tmp_path, "linear", factors)
    assert read_adapter_file(path, model).unet_rank == files.RANK
    with pytest.raises(
        AdapterFileError, match=r"not finite, or too large, for time_embedding.linear_1 of the unet"
    ):
        read_weights(path, digest_of(path), "unet", model)


def test_a_misfit_in_many_layers_is_one_sentence(model: ModelTargets, tmp_path: Path) -> None:
    tensors = {
        key: tensor[:, :-1] if "lora_down" in key else tensor for key, tensor in files.kohya(model).items()
    }
    message = refusal(files.save(tmp_path / "a.safetensors", tensors), model)
    assert "prompts 31 wide; this model is one whose U-Net reads prompts 32 wide" in message
    kept = {key: tensor for key, tensor in tensors.items() if "attn2_to_" not in key}
    message = refusal(files.save(tmp_path / "b.safetensors", kept), model)
    assert message.endswith(" other layers do not fit either.")
    assert len(message) < 500
