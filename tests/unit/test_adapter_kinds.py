"""Every kind that requests can use, against LyCORIS."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.adapters.files import AdapterFile, AdapterFileError, read_adapter_file
from deployments.adapters.reading import digest_of, read_weights
from deployments.adapters.targets import ModelTargets, targets_of_model
from deployments.engine.model_source import ModelSource
from tests import adapter_files as files
from tests.adapter_files import LAYERS, RANK, Tensors, save_layer, shape_in, weight_of_lycoris

Make = Callable[..., Tensors]
LOW_RANK = [
    *((make, layer) for make in (files.lora_file, files.loha, files.lokr) for layer in LAYERS),
    *((files.lokr_of_four, layer) for layer in LAYERS),
    *((files.lokr_of_more, layer) for layer in LAYERS),
    *((make, "convolution") for make in (files.tucker_lora, files.tucker_loha, files.tucker_lokr)),
]


@pytest.fixture(scope="module")
def model(model_folder: Callable[[str], Path]) -> ModelTargets:
    return targets_of_model(ModelSource(str(model_folder("sd1"))))


@pytest.mark.parametrize(("make", "layer"), LOW_RANK)
@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_low_ranks_are_exact(
    model: ModelTargets, tmp_path: Path, make: Make, layer: str, alpha: float
) -> None:
    torch.manual_seed(2)
    shape = shape_in(model, layer)
    factors = make(*shape)
    path = save_layer(tmp_path, layer, factors | {"alpha": torch.tensor(alpha)})
    file = read_adapter_file(path, model)
    made = read_weights(path, digest_of(path), "unet", model)[LAYERS[layer]]

    wanted = weight_of_lycoris(factors, shape, alpha)
    assert (files.delta(made, shape) - wanted).abs().max() < 1e-6 * wanted.abs().max()
    assert wanted.abs().max() > 1e-4
    assert made.a.shape[0] == file.unet_rank <= min(shape[0], wanted[0].numel(), 2 * RANK * RANK)
    assert made.a.dtype == made.b.dtype == torch.float32
    assert not file.dense


def test_kinds_and_ranks_are_told_from_the_header(model: ModelTargets, tmp_path: Path) -> None:
    def file(make: Make, layer: str) -> AdapterFile:
        return read_adapter_file(save_layer(tmp_path, layer, make(*shape_in(model, layer))), model)

    assert file(files.lora_file, "linear").kinds == file(files.lora_file, "one pixel").kinds == ("lora",)
    assert file(files.lora_file, "convolution").kinds == ("locon",)
    assert file(files.tucker_lora, "convolution").kinds == ("locon",)
    loha = file(files.loha, "linear")
    assert (loha.kinds, loha.unet_rank, loha.text_rank) == (("loha",), RANK * RANK, 0)
    assert file(files.loha, "few outputs").unet_rank == 4, "no layer has more than its smaller side"
    lokr = file(files.lokr, "linear")
    assert (lokr.kinds, lokr.unet_rank) == (("lokr",), 2 * RANK)
    whole = file(files.full_lokr, "linear")
    assert (whole.kinds, whole.ranks, len(whole.dense)) == (("lokr",), {"unet": 0}, 2)
    dora = file(files.dora, "linear")
    assert (dora.kinds, dora.unet_rank) == (("lora", "dora"), RANK)
    assert [key.rpartition(".")[2] for key in dora.dense] == ["dora_scale"]


def test_ranks_may_differ_by_layer_and_part(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    xl = targets_of_model(ModelSource(str(model_folder("sdxl"))))
    tensors: Tensors = {}
    for part, rank in (("unet", 4), ("text_encoder", 2), ("text_encoder_2", 3)):
        tensors |= files.kohya(xl, [part], rank)
    stem = "lora_unet_time_embedding_linear_1"
    for role, factor in files.lora(xl.parts["unet"]["time_embedding.linear_1"], 7).items():
        tensors[f"{stem}.lora_{role}.weight"] = factor
    said = {"modelspec.title": "A\nstyle", "modelspec.trigger_phrase": "x" * 9000, "ss_tag_frequency": "{}"}
    path = files.save(tmp_path / "a.safetensors", tensors, said)
    file = read_adapter_file(path, xl)
    assert file.ranks == {"unet": 7, "text_encoder": 2, "text_encoder_2": 3}
    assert (file.unet_rank, file.text_rank, file.num_bytes) == (7, 3, path.stat().st_size)
    kept = {"modelspec.title": "A style", "modelspec.trigger_phrase": "x" * 500}
    assert file.metadata == kept, "only what is shown, of thousands of files"
    weights = read_weights(path, digest_of(path), "unet", xl)
    assert {factors.a.shape[0] for factors in weights.values()} == {4, 7}


@pytest.mark.parametrize("make", [files.full_lokr, files.dora, files.diff])
def test_requests_cannot_use_what_has_no_low_rank(model: ModelTargets, tmp_path: Path, make: Make) -> None:
    path = save_layer(tmp_path, "linear", make(*shape_in(model, "linear")))
    assert read_adapter_file(path, model).dense
    with pytest.raises(
        AdapterFileError, match="no request can use, only `fuse` in a model's file: lora_unet_"
    ):
        read_weights(path, digest_of(path), "unet", model)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        (None, 1.0),
        ({"unet.lora_alpha": 8, "unet.r": 2}, 4.0),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / 2**0.5),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"linear_1": 4}}, 2.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"ear_1": 4}}, 4.0),
        ({"text_encoder.lora_alpha": 8}, 1.0),
    ],
)
def test_without_an_alpha_the_metadata_of_diffusers_counts(
    model: ModelTargets, tmp_path: Path, config: dict[str, Any] | None, scale: float
) -> None:
    factors = files.lora_file(*shape_in(model, "linear"))
    metadata = {} if config is None else {"lora_adapter_metadata": json.dumps(config)}
    path = save_layer(tmp_path, "linear", factors, metadata)
    made = read_weights(path, digest_of(path), "unet", model)[LAYERS["linear"]]
    wanted = factors["lora_up.weight"] @ factors["lora_down.weight"] * scale
    assert torch.allclose(made.b @ made.a, wanted, atol=1e-6)


@pytest.mark.parametrize("alpha", [10**400, "x" * 9000, True, [1]])
def test_an_alpha_in_the_metadata_that_is_no_number_is_refused(
    model: ModelTargets, tmp_path: Path, alpha: object
) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": alpha})}
    path = save_layer(tmp_path, "linear", files.lora_file(*shape_in(model, "linear")), metadata)
    with pytest.raises(AdapterFileError, match="the alpha of unet in its metadata is") as refused:
        read_adapter_file(path, model)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_stored_dtypes(model: ModelTargets, tmp_path: Path, dtype: torch.dtype) -> None:
    factors = files.lora_file(*shape_in(model, "linear"))
    stored = {end: tensor.to(dtype) for end, tensor in factors.items()}
    path = save_layer(tmp_path, "linear", stored | {"alpha": torch.tensor(RANK)})  # an integer
    made = read_weights(path, digest_of(path), "unet", model)[LAYERS["linear"]]
    assert torch.equal(made.a, stored["lora_down.weight"].float())
    assert torch.equal(made.b, stored["lora_up.weight"].float())


def test_a_part_without_keys_is_empty(model: ModelTargets, tmp_path: Path) -> None:
    path = save_layer(tmp_path, "linear", files.lora_file(*shape_in(model, "linear")))
    assert read_weights(path, digest_of(path), "text_encoder", model) == {}


def test_another_content_is_refused(model: ModelTargets, tmp_path: Path) -> None:
    path = save_layer(tmp_path, "linear", files.lora_file(*shape_in(model, "linear")))
    digest = digest_of(path)
    save_layer(tmp_path, "linear", files.lora_file(*shape_in(model, "linear")))
    with pytest.raises(AdapterFileError, match="was changed or removed since"):
        read_weights(path, digest, "unet", model)
    path.unlink()
    with pytest.raises(AdapterFileError, match="was changed or removed: No such file"):
        read_weights(path, digest, "unet", model)
