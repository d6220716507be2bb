"""Loading U-Nets into the memory of others."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deployments.engine.fingerprint import model_ref
from deployments.engine.model_source import ModelLoadError, ModelSource, Placement
from deployments.engine.models import UNet, load_unet
from deployments.engine.unet_loader import DeviceLoader
from tests import tiny_models

CPU = Placement(device="cpu")


def no_rest() -> None:
    pass


def saved(folder: Path, family: str, seed: int) -> ModelSource:
    tiny_models.build(family, seed).save_pretrained(folder)
    return ModelSource(str(folder))


def weights(unet: UNet) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in unet._module.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sd1-inpainting"])
def test_a_models_file_has_the_weights_that_a_module_of_it_has(
    tmp_path: Path, family: str, dtype: str
) -> None:
    placement = Placement(device="cpu", dtype=dtype)
    into = load_unet(saved(tmp_path / "first", family, 1), placement)
    second = saved(tmp_path / "second", family, 2)
    expected = weights(load_unet(second, placement))
    places = {name: tensor.data_ptr() for name, tensor in into._module.state_dict().items()}
    assert not same(weights(into), expected)
    assert into.take_file(second, no_rest)
    assert same(weights(into), expected)
    assert {name: tensor.data_ptr() for name, tensor in into._module.state_dict().items()} == places


def test_the_embedded_models_file_is_taken(model_folder: Callable[[str], Path]) -> None:
    source = ModelSource(str(model_folder("shapes")))
    assert load_unet(source, CPU).take_file(source, no_rest)


def pickled(folder: Path) -> ModelSource:
    tiny_models.use_pickle(folder, "unet")
    return ModelSource(str(folder), allow_pickle=True)


def sharded(folder: Path) -> ModelSource:
    pipeline = tiny_models.build("sd1", 2)
    for path in (folder / "unet").glob("*.safetensors"):
        path.unlink()
    pipeline.unet.save_pretrained(folder / "unet", max_shard_size="100KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    return ModelSource(str(folder))


@pytest.mark.parametrize("stored", [pickled, sharded])
def test_other_files_are_not_taken_but_loaded(tmp_path: Path, stored: Callable[[Path], ModelSource]) -> None:
    saved(tmp_path / "second", "sd1", 2)
    second = stored(tmp_path / "second")
    loader = DeviceLoader(CPU, (), 1)
    runner = loader.load(model_ref(saved(tmp_path / "first", "sd1", 1)), None)
    assert not runner.unet.take_file(second, no_rest)
    loaded = loader.load(model_ref(second), runner)
    assert loaded is runner
    assert same(weights(loaded.unet), weights(load_unet(second, CPU)))


def test_another_architecture_is_not_taken(tmp_path: Path) -> None:
    into = load_unet(saved(tmp_path / "first", "sd1", 1), CPU)
    before = weights(into)
    assert not into.take_file(saved(tmp_path / "second", "sd2", 2), no_rest)
    assert same(weights(into), before)


def test_a_file_that_lacks_a_tensor_is_refused_and_not_taken(tmp_path: Path) -> None:
    second = saved(tmp_path / "second", "sd1", 2)
    tiny_models.drop_tensor(tmp_path / "second", "unet", "weight")
    loader = DeviceLoader(CPU, (), 1)
    runner = loader.load(model_ref(saved(tmp_path / "first", "sd1", 1)), None)
    assert not runner.unet.take_file(second, no_rest)
    with pytest.raises(ModelLoadError, match="lack 1 tensors"):
        loader.load(model_ref(second), runner)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    second = saved(tmp_path / "second", "sd1", 2)
    [path] = (tmp_path / "second" / "unet").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelLoadError, match="its unet cannot be loaded"):
        load_unet(saved(tmp_path / "first", "sd1", 1), CPU).take_file(second, no_rest)
