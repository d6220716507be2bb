"""Problems with a model's files are reported before any weights are read, with part and file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers.schedulers import KarrasDiffusionSchedulers

from deployments.engine.model_files import SCHEDULERS
from deployments.engine.model_source import ModelLoadError, ModelSource, Placement, load_model_info
from deployments.engine.models import load_text_pipeline, load_unet, load_vae
from tests import tiny_models
from tests.conftest import LoadedModel, finish

Folder = Callable[[str], Path]
SCHEDULER = "scheduler/scheduler_config.json"


def refusal(folder: Path, **source: Any) -> list[str]:
    """The lines of the refusal, without the model's name; none if it can be served."""
    try:
        load_model_info(ModelSource(str(folder), **source), with_weights=True)
    except ModelLoadError as error:
        return str(error).replace(f"model {str(folder)!r}: ", "").splitlines()
    return []


@pytest.mark.parametrize("family", ["shapes", *tiny_models.FAMILIES])
def test_nothing_is_wrong_with_a_model_that_is_whole(model_folder: Folder, family: str) -> None:
    assert refusal(model_folder(family)) == []


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        (SCHEDULER, {"_class_name": None}, f"{SCHEDULER}: _class_name is missing"),
        (
            SCHEDULER,
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "FlowMatchEulerDiscreteScheduler has a noise schedule other",
        ),
        (
            SCHEDULER,
            {"timestep_type": "continuous"},
            f"{SCHEDULER}: timestep_type 'continuous' is not served",
        ),
        (
            SCHEDULER,
            {"prediction_type": "flow_prediction"},
            "prediction_type 'flow_prediction' is not served",
        ),
        (
            "unet/config.json",
            {"sample_size": None},
            "unet/config.json: sample_size is None; it must be a number",
        ),
        (
            "unet/config.json",
            {"sample_size": [64]},
            "unet/config.json: sample_size is [64]; it must be a number",
        ),
        ("vae/config.json", {"block_out_channels": None}, "vae/config.json: block_out_channels is missing"),
        (
            "tokenizer/tokenizer_config.json",
            {"model_max_length": None},
            "tokenizer/tokenizer_config.json: model_max_length is None; it must be a number of tokens",
        ),
    ],
)
def test_a_configuration_that_cannot_be_served_is_named(
    model_folder: Folder, tmp_path: Path, file: str, changes: dict[str, Any], sentence: str
) -> None:
    [line] = refusal(tiny_models.copy(model_folder("sd1"), tmp_path / "m", file, **changes))
    assert sentence in line


@pytest.mark.parametrize(
    ("family", "name"), [("sdxl", "EDMDPMSolverMultistepScheduler"), ("sd1", "EDMEulerScheduler")]
)
def test_edm_noise_is_refused(model_folder: Folder, tmp_path: Path, family: str, name: str) -> None:
    """Playground v2.5's scheduler: no served sampler has its sigmas."""
    folder = tiny_models.copy(model_folder(family), tmp_path / "m")
    edm = {"_class_name": name, "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    (folder / SCHEDULER).write_text(json.dumps(edm | {"prediction_type": "epsilon"}))
    assert refusal(folder) == [
        f"{SCHEDULER}: {name} has a noise schedule other than Stable Diffusion's betas, which is not served"
    ]


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("scheduler", f"{SCHEDULER} is not there"),
        ("unet/config.json", "unet/config.json is not there"),
        ("vae", "vae/config.json is not there"),
        ("text_encoder_2/config.json", "text_encoder_2/config.json is not there"),
        ("tokenizer/tokenizer_config.json", "tokenizer/tokenizer_config.json is not there"),
        (
            "tokenizer_2/tokenizer.json",
            "tokenizer_2 has no vocabulary: vocab.json and merges.txt must exist, or tokenizer.json",
        ),
        (
            "vae/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors is not there",
        ),
        ("text_encoder/model.safetensors", "text_encoder/model.safetensors is not there"),
    ],
)
def test_a_file_that_is_not_there_is_named(
    model_folder: Folder, tmp_path: Path, missing: str, sentence: str
) -> None:
    folder = tiny_models.copy(model_folder("sdxl"), tmp_path / "m")
    if (folder / missing).is_dir():
        shutil.rmtree(folder / missing)
    else:
        (folder / missing).unlink()
    assert refusal(folder)[0] == sentence


def test_all_that_is_wrong_is_said_at_once(model_folder: Folder, tmp_path: Path) -> None:
    folder = tiny_models.copy(model_folder("sd1"), tmp_path / "m", SCHEDULER, _class_name=None)
    (folder / "unet" / "config.json").write_text("{")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert [line.split()[0].rstrip(":") for line in refusal(folder)] == [
        "unet/config.json",
        SCHEDULER,
        "tokenizer",
        "vae/diffusion_pytorch_model.safetensors",
    ]


def test_a_file_of_weights_that_is_not_whole_is_named(model_folder: Folder, tmp_path: Path) -> None:
    """This happens after an interrupted copy, or if Git LFS has left its pointer."""
    folder = tiny_models.copy(model_folder("sd1"), tmp_path / "m")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (folder / "text_encoder" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    names = [line.partition(" is not a complete safetensors file: ")[0] for line in refusal(folder)]
    assert names == ["vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]


def test_a_part_without_the_variant_is_named(model_folder: Folder, tmp_path: Path) -> None:
    folder = tiny_models.copy(model_folder("sdxl"), tmp_path / "m")
    tiny_models.use_variant(folder, "unet", "fp16")
    assert refusal(folder, variant="fp16") == [
        "vae/diffusion_pytorch_model.fp16.safetensors is not there: the part vae has no variant 'fp16'; "
        "there is diffusion_pytorch_model.safetensors"
    ]
    tiny_models.use_variant(folder, "vae", "fp16")
    assert refusal(folder, variant="fp16") == [], "diffusers takes a text encoder's plain weights"
    source = ModelSource(str(folder), variant="fp16")
    placement = Placement(device="cpu")
    load_unet(source, placement), load_vae(source, placement), load_text_pipeline(source, placement)


def test_weights_in_several_files_are_looked_for(model_folder: Folder, tmp_path: Path) -> None:
    folder = tiny_models.copy(model_folder("sd1"), tmp_path / "m")
    unet = tiny_models.build("sd1").unet
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="500KB")
    assert refusal(folder) == []
    [*_, last] = sorted((folder / "unet").glob("*.safetensors"))
    last.unlink()
    assert refusal(folder) == [
        f"unet/{last.name} is not there, although unet/diffusion_pytorch_model.safetensors.index.json "
        "lists it"
    ]


@pytest.mark.parametrize(
    ("part", "file"), [("unet", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin")]
)
def test_pickles_are_taken_only_where_they_are_allowed(
    model_folder: Folder, tmp_path: Path, part: str, file: str
) -> None:
    folder = tiny_models.copy(model_folder("sd1"), tmp_path / "m")
    tiny_models.use_pickle(folder, part)
    [line] = refusal(folder)
    assert line.startswith(f"{part}/{file} is a pickle, which can run any code when it is loaded")
    assert "model.allow_pickle" in line
    load = {"unet": load_unet, "text_encoder": load_text_pipeline}[part]
    with pytest.raises(ModelLoadError, match=part):
        load(ModelSource(str(folder)), Placement(device="cpu"))

    assert refusal(folder, allow_pickle=True) == []
    load(ModelSource(str(folder), allow_pickle=True), Placement(device="cpu"))


def test_a_model_that_is_not_square_is_served_in_its_own_size(
    load_model: Callable[..., LoadedModel], model_folder: Folder, tmp_path: Path
) -> None:
    folder = tiny_models.copy(model_folder("sd1"), tmp_path / "m", "unet/config.json", sample_size=[24, 16])
    assert refusal(folder) == []
    info = load_model_info(ModelSource(str(folder)))
    assert (info.default_height, info.default_width) == (48, 32)
    model = load_model("sd1")
    engine = model.engine(max_rows=2, rows_per_forward=2)
    engine.add(model.request("image", height=info.default_height, width=info.default_width))
    [latents] = finish(engine).values()
    assert model.decoder.decode([latents])[0].shape == (48, 32, 3)


def test_a_hub_that_is_not_asked_is_no_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelLoadError, match=r"^model 'owner/name' cannot be read: model_index.json cannot be fetched"
    ):
        load_model_info(ModelSource("owner/name"))


@pytest.mark.parametrize(
    ("family", "part", "end", "load"),
    [
        ("sd1", "unet", "conv_out.weight", load_unet),
        ("sd1", "vae", "conv_out.bias", load_vae),
        ("sd1", "text_encoder", "layer_norm1.weight", load_text_pipeline),
        ("sdxl", "text_encoder_2", "text_projection.weight", load_text_pipeline),
    ],
)
def test_weights_that_lack_a_tensor_are_not_drawn_at_random(
    model_folder: Folder, tmp_path: Path, family: str, part: str, end: str, load: Callable[..., object]
) -> None:
    folder = tiny_models.copy(model_folder(family), tmp_path / "m")
    tiny_models.drop_tensor(folder, part, end)
    with pytest.raises(ModelLoadError, match=rf"the weights of {part} lack 1 tensors, such as .*{end}$"):
        load(ModelSource(str(folder)), Placement(device="cpu"))


def test_the_schedulers_that_are_named_are_those_of_diffusers() -> None:
    known = {*KarrasDiffusionSchedulers.__members__, "LCMScheduler", "TCDScheduler"}
    assert known - {"EDMEulerScheduler"} == SCHEDULERS
