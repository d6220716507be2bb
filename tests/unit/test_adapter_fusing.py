"""Merging adapters of every kind into weights, and into models that are read in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris.functional.general import weight_decompose
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from deployments.adapters.files import AdapterFileError, read_adapter_file
from deployments.adapters.fusing import fuse
from deployments.adapters.targets import ModelTargets, targets_of_model
from deployments.engine.model_source import ModelSource
from deployments.ingestion.cache import read_manifest
from deployments.ingestion.ingest import IngestionError, ModelToIngest, ingest, source_key
from tests import adapter_files as files
from tests import tiny_models
from tests.adapter_files import LAYERS, RANK, Tensors, save_layer, shape_in, weight_of_lycoris

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def model(model_folder: Folder) -> ModelTargets:
    return targets_of_model(ModelSource(str(model_folder("sd1"))))


def merged_by_lycoris(weight: torch.Tensor, factors: Tensors) -> torch.Tensor:
    if "diff" in factors:
        return weight + factors["diff"]
    merged = weight + weight_of_lycoris(factors, tuple(weight.shape), alpha=1.0)
    if (scale := factors.get("dora_scale")) is None:
        return merged
    return weight_decompose(merged, scale, wd_on_out=scale.shape[0] > 1)


@pytest.mark.parametrize("layer", ["linear", "one pixel", "convolution"])
@pytest.mark.parametrize(
    "make",
    [
        *(files.lora_file, files.loha, files.lokr, files.full_lokr),
        *(files.dora, files.dora_of_inputs, files.dora_of_loha, files.diff),
    ],
)
def test_all_kinds_are_merged_as_by_lycoris(
    model: ModelTargets, tmp_path: Path, make: Callable[..., Tensors], layer: str
) -> None:
    torch.manual_seed(3)
    shape = shape_in(model, layer)
    factors, name = make(*shape), LAYERS[layer]
    alpha = {} if make is files.diff else {"alpha": torch.tensor(1.0)}
    path = save_layer(tmp_path, layer, factors | alpha)
    weight, bias = files.random(*shape), files.random(shape[0])

    def fused(scale: float) -> Tensors:
        tensors = {f"{name}.weight": weight.clone(), f"{name}.bias": bias.clone()}
        fuse("unet", tensors, [(path, scale)], model)
        return tensors

    wanted = merged_by_lycoris(weight, factors)
    assert torch.allclose(fused(1.0)[f"{name}.weight"], wanted, atol=2e-6)
    assert torch.allclose(fused(1.0)[f"{name}.bias"], bias + factors.get("diff_b", torch.zeros(1)))
    assert not torch.allclose(wanted, weight, atol=1e-3)
    assert torch.equal(fused(0.0)[f"{name}.weight"], weight)
    assert torch.allclose(fused(0.5)[f"{name}.weight"], (weight + wanted) / 2, atol=2e-6)


def test_dora_of_peft_is_merged_as_by_peft(model: ModelTargets, tmp_path: Path) -> None:
    torch.manual_seed(4)
    name, linear = LAYERS["linear"], torch.nn.Linear(16, 64)
    given = {f"{name}.weight": linear.weight.detach().clone()}
    config = LoraConfig(r=RANK, lora_alpha=RANK, use_dora=True, target_modules=["0"], init_lora_weights=False)
    wrapped = get_peft_model(torch.nn.Sequential(linear), config)
    layer = wrapped.base_model.model[0]
    magnitude = layer.lora_magnitude_vector["default"].weight
    with torch.no_grad():
        magnitude.mul_(1.5)
    tensors = {
        f"unet.{name}.lora_A.weight": layer.lora_A["default"].weight.detach(),
        f"unet.{name}.lora_B.weight": layer.lora_B["default"].weight.detach(),
        f"unet.{name}.lora_magnitude_vector": magnitude.detach(),
    }
    path = files.save(tmp_path / "a.safetensors", tensors)
    assert read_adapter_file(path, model).kinds == ("lora", "dora")
    fuse("unet", given, [(path, 1.0)], model)
    assert torch.allclose(given[f"{name}.weight"], wrapped.merge_and_unload()[0].weight, atol=1e-6)


def test_norms_and_whole_weights(model: ModelTargets, tmp_path: Path) -> None:
    norm, linear = "down_blocks.0.resnets.0.norm1", LAYERS["linear"]
    stems = {name: files.kohya_stem("unet", name) for name in (norm, linear)}
    changes = {
        f"{stems[norm]}.w_norm": files.random(16),
        f"{stems[norm]}.b_norm": files.random(16),
        f"{stems[linear]}.set_weight": files.random(64, 16),
    }
    path = files.save(tmp_path / "a.safetensors", changes)
    file = read_adapter_file(path, model)
    assert (file.kinds, file.ranks) == (("full", "norm"), {"unet": 0})
    assert file.dense == tuple(sorted(changes))
    names = (f"{norm}.weight", f"{norm}.bias", f"{linear}.weight")
    given = {name: files.random(*model.shapes["unet"][name]).half() for name in names}
    before = [tensor.float() for tensor in given.values()]
    fuse("unet", given, [(path, 0.5)], model)
    w_norm, b_norm, whole = changes.values()
    wanted = [before[0] + w_norm / 2, before[1] + b_norm / 2, (before[2] + whole) / 2]
    for tensor, value in zip(given.values(), wanted, strict=True):
        assert tensor.dtype == torch.float16
        assert torch.allclose(tensor.float(), value, atol=1e-3)


def test_what_is_not_finite_is_refused(model: ModelTargets, tmp_path: Path) -> None:
    factors = files.diff(*shape_in(model, "linear"))
    factors["diff"][3, 3] = float("nan")
    path = save_layer(tmp_path, "linear", factors)
    given = {f"{LAYERS['linear']}.{end}": torch.zeros(1) for end in ("weight", "bias")}
    with pytest.raises(AdapterFileError, match=r"values that are not finite, .* time_embedding.linear_1"):
        fuse("unet", given, [(path, 1.0)], model)


def unet(folder: Path) -> Tensors:
    return load_file(next((folder / "unet").resolve().glob("*.safetensors")))


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_a_model_is_read_in_with_its_adapters(model_folder: Folder, tmp_path: Path, family: str) -> None:
    source, cache = str(model_folder(family)), tmp_path / "cache"
    targets = targets_of_model(ModelSource(source))
    tensors = files.kohya(targets, ["unet", "text_encoder"])
    path = files.save(tmp_path / "style.safetensors", tensors)
    plain = ingest(ModelToIngest(source), cache)
    model = ModelToIngest(source, fuse=[(str(path), 0.5), (str(path), 0.25)])
    made = ingest(model, cache)

    before, after = (read_manifest(folder)["digests"] for folder in (plain, made))
    changed = {part for part in before if before[part] != after[part]}
    assert changed == {"unet", "text_encoder"}, "the other parts are kept once"
    own, merged = unet(plain), unet(made)
    for name, target in targets.parts["unet"].items():
        stem = files.kohya_stem("unet", name)
        up, down = (tensors[f"{stem}.lora_{role}.weight"] for role in ("up", "down"))
        delta = (up.flatten(1) @ down.flatten(1)).reshape(files.shape_of(target)) / RANK
        assert torch.allclose(merged[f"{name}.weight"], own[f"{name}.weight"] + 0.75 * delta, atol=1e-6)
    assert ingest(model, cache) == made
    assert ingest(ModelToIngest(source), cache) == plain


def test_keys_of_models_without_adapters_stay_as_they_were(model_folder: Folder, tmp_path: Path) -> None:
    source = str(model_folder("sd1"))
    plain = source_key(ModelToIngest(source))
    assert plain == source_key(ModelToIngest(source, fuse=[]))
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"1")
    model = ModelToIngest(source, fuse=[(str(path), 1.0)])
    first = source_key(model)
    path.write_bytes(b"12")
    assert len({plain, first, source_key(model)}) == 3
    assert source_key(model) == source_key(
        ModelToIngest(**json.loads(json.dumps({"source": source, "fuse": model.fuse})))
    )


@pytest.mark.parametrize(
    ("fused", "sentence"),
    [
        ([("{good}", 1.0), ("{xl}", 1.0)], r"^fuse\[1\]\.adapter: xl.safetensors is for "),
        (
            [("{good}", 1.0), ("/nowhere/a.safetensors", 1.0)],
            r"^fuse\[1\]\.adapter: a.safetensors is no file",
        ),
        ([("style", 1.0)], r"^fuse\[0\]\.adapter: 'style' is no file; .*owner/name/file.safetensors"),
        ([("{broken}", 1.0)], r"^fuse: broken.safetensors has values that are not finite"),
    ],
)
def test_refusals_name_the_key(
    model_folder: Folder, tmp_path: Path, fused: list[tuple[str, float]], sentence: str
) -> None:
    sd1, sdxl = (targets_of_model(ModelSource(str(model_folder(name)))) for name in ("sd1", "sdxl"))
    bad = {key: tensor * float("nan") for key, tensor in files.kohya(sd1).items()}
    paths: dict[str, Any] = {
        "good": files.save(tmp_path / "good.safetensors", files.kohya(sd1)),
        "xl": files.save(tmp_path / "xl.safetensors", files.kohya(sdxl)),
        "broken": files.save(tmp_path / "broken.safetensors", bad),
    }
    given = [(adapter.format(**paths), scale) for adapter, scale in fused]
    with pytest.raises(IngestionError, match=sentence):
        ingest(ModelToIngest(str(model_folder("sd1")), fuse=given), tmp_path / "cache")
