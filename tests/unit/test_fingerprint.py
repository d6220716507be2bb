"""Fingerprints of models: equal for the same files, different for everything that would change a picture."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.engine import fingerprint as module
from deployments.engine.fingerprint import fingerprint, model_ref
from deployments.engine.model_source import ModelSource, Placement

MB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose weights are larger than the part that is read."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"sample_size": 64}))
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(5 * MB))
    return tmp_path


def of(folder: Path, placement: Placement | None = None, rows: int = 8) -> str:
    return fingerprint(model_ref(ModelSource(str(folder))), placement or Placement(), rows)


def test_a_copy_elsewhere_has_the_same(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("another machine") / "model"
    shutil.copytree(folder, copy)
    (copy / ".cache").mkdir()
    (copy / ".cache" / "lock").touch()
    assert of(copy) == of(folder)
    assert bytes.fromhex(of(folder))


def overwrite(folder: Path, at: int, length: int) -> None:
    with (folder / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(at)
        file.write(b"x" * length)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "unet" / "config.json").write_text(json.dumps({"sample_size": 65})),
        lambda folder: (folder / "unet" / "config.json").rename(folder / "config.json"),
        lambda folder: (folder / "unet" / "another.safetensors").touch(),
        lambda folder: (folder / "model_index.json").write_text("{}"),
        lambda folder: overwrite(folder, 0, 1),
        lambda folder: overwrite(folder, 5 * MB - 1, 1),
        lambda folder: overwrite(folder, 3 * MB, 128 << 10),  # a layer
    ],
)
def test_other_files_have_another(folder: Path, change: Callable[[Path], None]) -> None:
    before = of(folder)
    change(folder)
    assert of(folder) != before


def test_what_lies_beside_the_parts_does_not_count(folder: Path) -> None:
    before = of(folder)
    (folder / "train.py").touch()
    (folder / "adapters").mkdir()
    (folder / "adapters" / "lcm.safetensors").touch()
    assert of(folder) == before


def test_whatever_else_decides_about_the_bytes_is_in_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Placement(device="cpu")
    assert of(folder, plain) == of(folder, replace(plain, device="auto")), (
        "devices of one kind are not told apart"
    )
    others = [
        of(folder, replace(plain, dtype="float16")),
        of(folder, replace(plain, attention="xformers")),
        of(folder, replace(plain, quantization="int8")),
        of(folder, replace(plain, quantization="fp8")),
        of(folder, replace(plain, device="simulated")),
        of(folder, plain, rows=4),
        fingerprint(model_ref(ModelSource(str(folder))), plain, 8, deterministic_rank=128),
        fingerprint(model_ref(ModelSource(str(folder), variant="fp16")), plain, 8),
    ]
    monkeypatch.setattr(module, "ENGINE_VERSION", module.ENGINE_VERSION + 1)
    others.append(of(folder, plain))
    monkeypatch.undo()
    assert len({of(folder, plain), *others}) == 1 + len(others)


def test_of_a_hub_id_it_is_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit comes from the hub's cache, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cache = tmp_path / "models--somebody--shapes"
    (cache / "refs").mkdir(parents=True)
    found = set()
    for commit in ("a" * 40, "b" * 40):
        (cache / "snapshots" / commit).mkdir(parents=True)
        (cache / "snapshots" / commit / "model_index.json").touch()
        (cache / "refs" / "main").write_text(commit)
        found.add(model_ref(ModelSource("somebody/shapes")).digest)
    assert len(found) == 2
    assert model_ref(ModelSource("somebody/shapes", revision="b" * 40)).digest in found
