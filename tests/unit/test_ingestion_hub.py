"""Of a hub's model, only the files of the parts that are served are fetched."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from deployments.ingestion.hub import model_patterns
from deployments.ingestion.ingest import IngestionError, ModelToIngest, ingest, known
from tests import tiny_models

PLAIN = ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
VARIANTS = ["unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"]
TEXT = ["text_encoder/model.safetensors"]
CONFIGS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
]
OTHERS = [
    "README.md",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "safety_checker/model.safetensors",
    "unet/model.onnx",
    "v1-5-pruned.safetensors",
    "v1-5-pruned.ckpt",
]


@pytest.mark.parametrize(
    ("entry", "weights"),
    [
        ({}, [*PLAIN, *TEXT]),
        ({"variant": "fp16"}, [*VARIANTS, *TEXT]),
        ({"vae": "owner/vae"}, [PLAIN[0], *TEXT]),
        ({"allow_pickle": True}, [*PLAIN, *TEXT, "unet/diffusion_pytorch_model.bin"]),
    ],
)
def test_only_what_is_needed_is_fetched(entry: dict[str, Any], weights: list[str]) -> None:
    patterns = model_patterns(ModelToIngest("owner/model", **entry))
    files = [*PLAIN, *VARIANTS, *TEXT, *CONFIGS, *OTHERS]
    assert sorted(filter_repo_objects(files, allow_patterns=patterns)) == sorted([*CONFIGS, *weights])


def test_shards_and_their_index_are_fetched() -> None:
    shards = [f"unet/diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    files = [*shards, "unet/diffusion_pytorch_model.safetensors.index.json"]
    patterns = model_patterns(ModelToIngest("owner/model"))
    assert list(filter_repo_objects(files, allow_patterns=patterns)) == files


def test_what_is_fetched_is_ingested(
    model_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = model_folder("sd1"), []

    def download(hub_id: str, **given: Any) -> str:
        asked.append((hub_id, given["revision"]))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = ModelToIngest("owner/model-v1.5", revision="main")
    made = ingest(model, tmp_path / "cache")
    assert made == ingest(ModelToIngest(str(folder)), tmp_path / "cache")
    assert known(model, tmp_path / "cache") == ingest(model, tmp_path / "cache")
    assert asked == [("owner/model-v1.5", "main")], "and once"


@pytest.mark.parametrize("pickles", [True, False])
def test_a_refusal_names_the_hub_id_and_where_only_pickles_are(
    model_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickles: bool
) -> None:
    fetched = tiny_models.copy(model_folder("sd1"), tmp_path / "snapshots" / "1f")
    (fetched / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    names = ["unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.safetensors"]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(fetched))
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *_, **__: names if pickles else names[1:])
    with pytest.raises(IngestionError) as caught:
        ingest(ModelToIngest("owner/model"), tmp_path / "cache")
    end = (
        "; the hub has them as pickles only, which can run any code when they are loaded: set allow_pickle "
        "if you trust their author"
    )
    assert str(caught.value) == "owner/model/unet has no weights" + (end if pickles else "")


def test_another_vae_of_the_hub(model_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(model_folder("sd1")))
    folder = tiny_models.copy(model_folder("sd2"), tmp_path / "m")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(IngestionError, match="vae has no weights"):
        ingest(ModelToIngest(str(folder)), tmp_path / "cache")
    made = ingest(ModelToIngest(str(folder), vae="owner/vae"), tmp_path / "cache")
    assert (made / "vae" / "diffusion_pytorch_model.safetensors").is_file()
