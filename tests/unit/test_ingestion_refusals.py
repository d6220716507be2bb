"""What cannot be ingested is refused by name: the file, what is wrong, and what to do."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.model_source import ModelLoadError
from deployments.ingestion.ingest import IngestionError, ModelToIngest, ingest
from deployments.tensor_files import headers, weights
from deployments.tensor_files.errors import TensorFileError
from tests import ldm_files, tiny_models

Folder = Callable[[str], Path]
ONE = torch.zeros(1)
CONV_OUT = "model.diffusion_model.out.2.weight"
LABEL_EMB = "model.diffusion_model.label_emb.0.0.weight"
FUSER = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.fuser.linear.weight"


def refusal(cache: Path, model: ModelToIngest, dtype: str = "auto") -> str:
    with pytest.raises(IngestionError) as caught:
        ingest(model, cache, dtype)
    assert not list((cache / "parts").glob("*")), "nothing is left"
    assert not list((cache / "staging").glob("*"))
    return str(caught.value)


@pytest.fixture
def no_weights_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that reads weights."""

    def fail(*_: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(weights, "_read", fail)


@pytest.mark.usefixtures("no_weights_read")
@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"lora_unet_down_blocks_0.lora_up.weight": ONE}, "is a LoRA or another adapter"),
        ({"unet.down_blocks.0.attn1.to_q.lora_A.weight": ONE}, "is a LoRA or another adapter"),
        ({"decoder.conv_in.weight": ONE}, "is a VAE alone: give it as the model's `vae`"),
        ({"first_stage_model.decoder.conv_in.weight": ONE}, "is a VAE alone"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": ONE}, "is a text encoder alone"),
        ({"control_model.input_hint_block.0.weight": ONE}, "is a ControlNet"),
        ({"controlnet_cond_embedding.conv_in.weight": ONE}, "is a ControlNet"),
        ({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": ONE}, "is a Flux model"),
        (
            {"model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight": ONE},
            "is a Stable Diffusion 3 model",
        ),
        ({"emb_params": ONE}, "is a textual inversion"),
        ({"model.diffusion_model.input_blocks.0.0.weight": ONE}, "has a U-Net but no text encoder"),
        ({"down_blocks.0.resnets.0.conv1.weight": ONE}, "is a U-Net alone"),
        ({"something.else": ONE}, "is no Stable Diffusion checkpoint that is known: .* but something.else"),
        ({}, "is no Stable Diffusion checkpoint that is known"),
    ],
)
def test_other_files_are_told_by_their_header(
    tmp_path: Path, tensors: Mapping[str, torch.Tensor], sentence: str
) -> None:
    path = ldm_files.save(tmp_path / "m.safetensors", tensors)
    with pytest.raises(ModelLoadError, match=f"^{path} {sentence}"):
        ingest(ModelToIngest(str(path)), tmp_path / "cache")


@pytest.mark.usefixtures("no_weights_read")
@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("m.ckpt", b"PK\x03\x04rest of it", "is a pickle, which can run any code"),
        ("m.pt", b"\x80\x02}q\x00", "is a pickle"),
        ("m.bin", b"", "is a pickle"),
        ("m.safetensors", b"PK\x03\x04\x14\x00\x08\x08data", "is a pickle"),
        ("m.safetensors", b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
        ("m.gguf", b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
        ("m.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("m.safetensors", b"<!doctype html><title>Log in", "is not a safetensors file"),
        ("m.safetensors", b"", "is not a safetensors file"),
        ("m.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00[1, 2  ]", "is not a safetensors file"),
        ("m.safetensors", b"\x90\x00\x00\x00\x00\x00\x00\x00{", "is truncated: it has 9 bytes"),
    ],
)
def test_other_formats(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert sentence in refusal(tmp_path / "cache", ModelToIngest(str(tmp_path / name)))


@pytest.mark.usefixtures("no_weights_read")
def test_a_file_that_is_cut_off(model_folder: Folder, tmp_path: Path) -> None:
    path = ldm_files.write(tmp_path / "m.safetensors", "sd1", tiny_models.build("sd1"))
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    message = refusal(tmp_path / "cache", ModelToIngest(str(path), config=str(model_folder("sd1"))))
    assert message.startswith(
        f"{path} is truncated: it has {len(content) - 1000:,} bytes, and its header promises"
    )


@pytest.mark.usefixtures("no_weights_read")
def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    message = refusal(tmp_path / "cache", ModelToIngest(str(tmp_path / "m.safetensors")))
    assert message == f"{tmp_path}/m.safetensors is not there: give an existing file or folder, or a hub id"


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal(tmp_path / "cache", ModelToIngest("owner/name"))
    assert message.startswith("owner/name cannot be fetched from the hub: ")


@pytest.mark.usefixtures("no_weights_read")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({CONV_OUT: None}, f"the weights of unet lack 1 of 208 tensors, such as {CONV_OUT}"),
        ({CONV_OUT: torch.zeros(4, 16, 1, 1)}, f"{CONV_OUT} has the shape [4, 16, 1, 1], which does not fit"),
        ({"edm_mean": ONE}, "has noise of EDM's kind (its tensor edm_mean)"),
        ({"edm_vpred.sigma_max": ONE}, "has noise of EDM's kind (its tensor edm_vpred.sigma_max)"),
        ({"scaled_fp8": ONE}, "has quantised weights (scaled_fp8)"),
        (
            {LABEL_EMB: ONE},
            f"its U-Net has 1 tensors that MODEL/unet/config.json has no place for, such as {LABEL_EMB}",
        ),
        ({FUSER: ONE}, f"no place for, such as {FUSER}: it is of another kind, as unCLIP and GLIGEN are"),
    ],
)
def test_what_a_checkpoint_lacks(
    model_folder: Folder, tmp_path: Path, changes: Mapping[str, Any], sentence: str
) -> None:
    path = ldm_files.write(tmp_path / "m.safetensors", "sd1", tiny_models.build("sd1"), **changes)
    message = refusal(tmp_path / "cache", ModelToIngest(str(path), config=str(model_folder("sd1"))))
    assert message.startswith(str(path))
    assert sentence.replace("MODEL", str(model_folder("sd1"))) in message


@pytest.mark.usefixtures("no_weights_read")
def test_where_much_is_missing_the_configuration_may_be_the_wrong_one(
    model_folder: Folder, tmp_path: Path
) -> None:
    found = ldm_files.tensors("sd1", tiny_models.build("sd1").components)
    lacking = dict.fromkeys(name for name in found if ".output_blocks." in name)
    path = ldm_files.save(tmp_path / "m.safetensors", {**found, **lacking})
    message = refusal(tmp_path / "cache", ModelToIngest(str(path), config=str(model_folder("sd1"))))
    assert message.endswith("or name the folder of its architecture's configurations as `config`")


@pytest.mark.usefixtures("no_weights_read")
@pytest.mark.parametrize(
    "header",
    [
        "[" * 100_000,
        '{"__metadata__": [1]}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}',
        '{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": 1, "data_offsets": [4, 0]}}',
    ],
    ids=range(8),
)
def test_a_header_of_other_types(tmp_path: Path, header: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))
    assert "is not a safetensors file" in refusal(tmp_path / "cache", ModelToIngest(str(path)))


def test_a_shape_beyond_all_memory_is_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    header = headers.Header(path, {"a": headers.StoredTensor("F32", (1 << 60,), 0, 4)}, {})
    path.write_bytes(bytes(8))
    with pytest.raises(TensorFileError, match="a has not as many bytes as its shape says"):
        weights.read_one(header, "a")


@pytest.mark.usefixtures("no_weights_read")
def test_an_index_of_shards_stays_in_its_folder(model_folder: Folder, tmp_path: Path) -> None:
    folder = tiny_models.copy(model_folder("sd1"), tmp_path / "m")
    weights_file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights_file.rename(tmp_path / "secret.safetensors")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for name in ("../../secret.safetensors", str(tmp_path / "secret.safetensors")):
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
        message = refusal(tmp_path / "cache", ModelToIngest(str(folder)))
        assert f"{index} lists " in message
        assert "which is not in its folder" in message


@pytest.mark.usefixtures("no_weights_read")
def test_a_file_without_vae(model_folder: Folder, tmp_path: Path) -> None:
    pipeline = tiny_models.build("sd1")
    found = ldm_files.tensors("sd1", {**pipeline.components, "vae": None})
    path = ldm_files.save(tmp_path / "m.safetensors", found)
    model = ModelToIngest(str(path), config=str(model_folder("sd1")))
    assert refusal(tmp_path / "cache", model) == (
        f"{path} has no VAE: name one as the model's `vae`, a file, a folder or a hub id"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(model_folder: Folder, tmp_path: Path, value: float) -> None:
    broken = tiny_models.build("sd1").unet.conv_out.weight.detach().clone()
    broken[0, 0, 0, 0] = value
    path = ldm_files.write(tmp_path / "m.safetensors", "sd1", tiny_models.build("sd1"), **{CONV_OUT: broken})
    message = refusal(tmp_path / "cache", ModelToIngest(str(path), config=str(model_folder("sd1"))))
    assert f"1 tensors of its unet have values that are not finite, such as {CONV_OUT}" in message


def test_values_beyond_float16_are_refused_in_float16_only(model_folder: Folder, tmp_path: Path) -> None:
    large = tiny_models.build("sd1").unet.conv_out.weight.detach().clone()
    large[0, 0, 0, 0] = 1e5
    path = ldm_files.write(tmp_path / "m.safetensors", "sd1", tiny_models.build("sd1"), **{CONV_OUT: large})
    model = ModelToIngest(str(path), config=str(model_folder("sd1")))
    sentence = f"{CONV_OUT} has values beyond 65504, which float16 does not have: use bfloat16 or float32"
    assert sentence in refusal(tmp_path / "cache", model, "float16")
    ingest(model, tmp_path / "cache", "bfloat16")
    with pytest.raises(IngestionError, match="has values beyond 65504"):
        ingest(model, tmp_path / "cache", "float16")


def test_quantised_weights(model_folder: Folder, tmp_path: Path) -> None:
    whole = torch.zeros(4, 16, 3, 3, dtype=torch.int8)
    path = ldm_files.write(tmp_path / "m.safetensors", "sd1", tiny_models.build("sd1"), **{CONV_OUT: whole})
    message = refusal(tmp_path / "cache", ModelToIngest(str(path), config=str(model_folder("sd1"))))
    assert f"{CONV_OUT} is stored as I8, a quantised form" in message


@pytest.mark.usefixtures("no_weights_read")
def test_all_that_is_wrong_with_a_folder_is_said_at_once(model_folder: Folder, tmp_path: Path) -> None:
    folder = tiny_models.copy(model_folder("sdxl"), tmp_path / "m")
    tiny_models.drop_tensor(folder, "unet", "conv_out.bias")
    tiny_models.use_pickle(folder, "vae")
    (folder / "text_encoder_2" / "model.safetensors").unlink()
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "scheduler" / "scheduler_config.json").unlink()
    lines = refusal(tmp_path / "cache", ModelToIngest(str(folder))).splitlines()
    assert [line.removeprefix(f"{folder}").removeprefix("/") for line in lines] == [
        "unet/diffusion_pytorch_model.safetensors: the weights of unet lack 1 of 292 tensors, such as "
        "conv_out.bias. Take a complete checkpoint",
        "text_encoder_2 has no weights",
        "vae/diffusion_pytorch_model.bin is a pickle, which can run any code when it is loaded, and there is "
        "no safetensors file: convert it, or set allow_pickle if you trust its author",
        ": tokenizer has no vocabulary: vocab.json and merges.txt must exist, or tokenizer.json",
        ": scheduler/scheduler_config.json is not there",
    ]


@pytest.mark.usefixtures("no_weights_read")
@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "is a FluxPipeline; served are"),
        ("model_index.json", {"requires_aesthetics_score": True}, "is an SDXL refiner"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "text_encoder is a T5"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "vae is a AutoencoderTiny"),
        ("unet/config.json", {"in_channels": 8}, "which does not fit its unet"),
        ("unet/config.json", {"sample_size": None}, "unet/config.json: sample_size is None"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "has a noise schedule"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "type 'flow' is not"),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be_served(
    model_folder: Folder, tmp_path: Path, file: str, changes: Mapping[str, Any], sentence: str
) -> None:
    folder = tiny_models.copy(model_folder("sd1"), tmp_path / "m", file, **changes)
    message = refusal(tmp_path / "cache", ModelToIngest(str(folder)))
    assert message.startswith(str(folder))
    assert sentence in message


def test_pickles_of_folders_run_no_code(model_folder: Folder, tmp_path: Path) -> None:
    """They are read with torch's unpickler for tensors only, even where they are allowed."""
    folder = tiny_models.copy(model_folder("sd1"), tmp_path / "m")
    tiny_models.use_pickle(folder, "unet")
    torch.save({"conv_in.weight": Path("code")}, folder / "unet" / "diffusion_pytorch_model.bin")
    message = refusal(tmp_path / "cache", ModelToIngest(str(folder), allow_pickle=True))
    assert "diffusion_pytorch_model.bin cannot be read as a pickle of tensors" in message
