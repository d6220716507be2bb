"""Every kind of checkpoint becomes the diffusers folder whose parts it holds, bit for bit."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from deployments.engine.fingerprint import model_ref
from deployments.engine.model_source import ModelSource, Placement, load_model_info
from deployments.engine.models import load_text_pipeline, load_unet, load_vae
from deployments.ingestion.ingest import ModelToIngest, ingest, known
from deployments.ingestion.weight_files import tokenizer_files
from tests import ldm_files, tiny_models

Folder = Callable[[str], Path]
SAYS_EPSILON = {"modelspec.prediction_type": "epsilon"}
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
FAMILIES = (*tiny_models.FAMILIES, *tiny_models.INPAINTING)


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return content


def single_file(model_folder: Folder, tmp_path: Path, family: str, **changes: Any) -> ModelToIngest:
    """A single file of a tiny model, which needs that model's configurations."""
    path = ldm_files.write(tmp_path / f"{family}.safetensors", family, tiny_models.build(family), **changes)
    return ModelToIngest(str(path), config=str(model_folder(family)))


def assert_equal_weights(made: Any, wanted: Any) -> None:
    for part in PARTS:
        if part in wanted.components:
            here, there = (getattr(pipeline, part).state_dict() for pipeline in (made, wanted))
            assert here.keys() == there.keys()
            assert all(torch.equal(here[name], there[name]) for name in here), part


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_becomes_the_folder_of_its_model(
    model_folder: Folder, tmp_path: Path, family: str
) -> None:
    folder = ingest(single_file(model_folder, tmp_path, family), tmp_path / "cache")
    original = tiny_models.build(family)
    assert_equal_weights(type(original).from_pretrained(folder), original)
    source, placement = ModelSource(str(folder)), Placement(device="cpu")
    info = load_model_info(source, with_weights=True)
    assert info.needs_mask == (family in tiny_models.INPAINTING)
    load_unet(source, placement), load_vae(source, placement), load_text_pipeline(source, placement)
    # The same model in a folder is the same model in the cache.
    assert ingest(ModelToIngest(str(model_folder(family))), tmp_path / "cache") == folder


def test_the_layout_of_the_cache(model_folder: Folder, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    folder = ingest(single_file(model_folder, tmp_path, "sdxl"), cache)
    said = manifest(folder)
    assert folder == cache / "models" / said["digest"]
    for part in ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        assert (folder / part).readlink() == Path("../../parts") / said["digests"][part]
    assert said["family"] == "sdxl"
    assert said["pipeline"] == "StableDiffusionXLPipeline"
    assert said["num_parameters"] == tiny_models.build("sdxl").unet.num_parameters()
    assert said["bytes"] == sum(path.stat().st_size for path in (cache / "parts").rglob("*.safetensors"))
    assert said["digests"]["scheduler"]
    assert not any((cache / "staging").iterdir())


def test_equal_parts_are_kept_once(model_folder: Folder, tmp_path: Path) -> None:
    """Two U-Nets with one VAE and one text encoder, of a single file and of a folder."""
    cache = tmp_path / "cache"
    first = ingest(ModelToIngest(str(model_folder("sd1"))), cache)
    other = tiny_models.build("sd1")
    with torch.no_grad():
        other.unet.conv_out.bias += 1.0
    path = ldm_files.write(tmp_path / "other.safetensors", "sd1", other)
    second = ingest(ModelToIngest(str(path), config=str(model_folder("sd1"))), cache)
    changed = {
        part
        for part, digest in manifest(first)["digests"].items()
        if digest != manifest(second)["digests"][part]
    }
    assert changed == {"unet"}
    here, there = (model_ref(ModelSource(str(folder))) for folder in (first, second))
    assert (here.vae, here.text) == (there.vae, there.text), "stages keep them once"
    assert here.unet != there.unet
    assert len(list((cache / "parts").iterdir())) == 5


def test_the_second_time_nothing_is_read(model_folder: Folder, tmp_path: Path) -> None:
    model, cache = single_file(model_folder, tmp_path, "sd1"), tmp_path / "cache"
    assert known(model, cache) is None
    seen: list[tuple[str, float]] = []
    folder = ingest(model, cache, progress=lambda what, share: seen.append((what, share)))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert {"reading unet", "checking vae", "writing text_encoder"} <= {what for what, _ in seen}

    again: list[str] = []
    assert known(model, cache) == folder
    assert ingest(model, cache, progress=lambda what, share: again.append(what)) == folder
    assert again == ["done"]
    Path(model.source).touch()
    assert known(model, cache) is None, "the file may have changed"


@pytest.mark.parametrize(
    ("changes", "entry", "prediction_type", "zero_terminal_snr"),
    [
        ({}, {}, "epsilon", False),
        ({"v_pred": torch.zeros(1)}, {}, "v_prediction", False),
        ({"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, {}, "v_prediction", True),
        ({"metadata": {"modelspec.prediction_type": "v"}}, {}, "v_prediction", False),
        ({"metadata": SAYS_EPSILON, "v_pred": torch.zeros(1)}, {}, "v_prediction", False),
        ({"v_pred": torch.zeros(1)}, {"prediction_type": "epsilon"}, "epsilon", False),
        ({}, {"prediction_type": "v_prediction", "zero_terminal_snr": True}, "v_prediction", True),
        ({"ztsnr": torch.zeros(1)}, {"zero_terminal_snr": False}, "epsilon", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_what_the_unet_predicts(
    model_folder: Folder,
    tmp_path: Path,
    family: str,
    changes: Mapping[str, Any],
    entry: Mapping[str, Any],
    prediction_type: str,
    zero_terminal_snr: bool,
) -> None:
    """NoobAI's marks in the file first, then its metadata, then the scheduler; the entry overrules all."""
    model = single_file(model_folder, tmp_path, family, **changes)
    folder = ingest(ModelToIngest(model.source, config=model.config, **entry), tmp_path / "cache")
    said = manifest(folder)
    assert (said["prediction_type"], said["zero_terminal_snr"]) == (prediction_type, zero_terminal_snr)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_bytes())
    assert scheduler["prediction_type"] == prediction_type
    if zero_terminal_snr:
        assert (scheduler["rescale_betas_zero_snr"], scheduler["timestep_spacing"]) == (True, "trailing")
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
        assert pipeline.scheduler.alphas_cumprod[-1] < 1e-6


def test_a_folder_says_in_its_scheduler_what_it_predicts(model_folder: Folder, tmp_path: Path) -> None:
    folder = ingest(ModelToIngest(str(model_folder("sd2"))), tmp_path / "cache")
    assert manifest(folder)["prediction_type"] == "v_prediction"


def test_a_folder_that_rescales_keeps_its_spacing_unless_the_entry_asks(
    model_folder: Folder, tmp_path: Path
) -> None:
    own = {"rescale_betas_zero_snr": True, "timestep_spacing": "leading"}
    path = "scheduler/scheduler_config.json"
    source = tiny_models.copy(model_folder("sd1"), tmp_path / "m", path, **own)
    for asked, spacing in (("auto", "leading"), (True, "trailing")):
        folder = ingest(ModelToIngest(str(source), zero_terminal_snr=asked), tmp_path / "cache")  # type: ignore[arg-type]
        scheduler = json.loads((folder / path).read_bytes())
        assert (scheduler["rescale_betas_zero_snr"], scheduler["timestep_spacing"]) == (True, spacing)


def test_a_projection_that_diffusers_conversion_left_as_it_is(model_folder: Folder, tmp_path: Path) -> None:
    found = ldm_files.tensors("sdxl", tiny_models.build("sdxl").components)
    name = "conditioner.embedders.1.model.text_projection"
    found[f"{name}.weight"] = found.pop(name).T.contiguous()
    path = ldm_files.save(tmp_path / "m.safetensors", found)
    folder = ingest(ModelToIngest(str(path), config=str(model_folder("sdxl"))), tmp_path / "cache")
    assert folder == ingest(ModelToIngest(str(model_folder("sdxl"))), tmp_path / "cache")


def test_only_known_files_of_a_tokenizer_are_copied(model_folder: Folder, tmp_path: Path) -> None:
    source = tiny_models.copy(model_folder("sd1"), tmp_path / "m")
    (source / "tokenizer" / "secret.py").write_text("print()")
    assert "secret.py" not in tokenizer_files(source / "tokenizer")
    folder = ingest(ModelToIngest(str(source)), tmp_path / "cache")
    assert folder == ingest(ModelToIngest(str(model_folder("sd1"))), tmp_path / "cache")


def test_averaged_weights_are_taken_only_where_there_are_no_others(
    model_folder: Folder, tmp_path: Path
) -> None:
    pipeline = tiny_models.build("sd1")
    plain = ldm_files.tensors("sd1", pipeline.components)
    averaged = ldm_files.averaged(plain)
    both = plain | {name: tensor + 1 for name, tensor in averaged.items() if name.startswith("model_ema.")}
    config, cache = str(model_folder("sd1")), tmp_path / "cache"
    folders = [
        ingest(ModelToIngest(str(ldm_files.save(tmp_path / name, found)), config=config), cache)
        for name, found in {"a.safetensors": plain, "b.safetensors": averaged, "c.safetensors": both}.items()
    ]
    assert len(set(folders)) == 1


def test_text_encoders_of_old_merges_are_understood(model_folder: Folder, tmp_path: Path) -> None:
    """Their names lack `text_model.`."""
    found = ldm_files.tensors("sd1", tiny_models.build("sd1").components)
    old = {name.replace("transformer.text_model.", "transformer."): one for name, one in found.items()}
    path = ldm_files.save(tmp_path / "old.safetensors", old)
    folder = ingest(ModelToIngest(str(path), config=str(model_folder("sd1"))), tmp_path / "cache")
    assert folder == ingest(ModelToIngest(str(model_folder("sd1"))), tmp_path / "cache")


@pytest.mark.parametrize("form", ["ldm", "ldm in a model", "diffusers", "folder", "model folder"])
@pytest.mark.parametrize("of", ["file", "folder"])
def test_another_vae(model_folder: Folder, tmp_path: Path, form: str, of: str) -> None:
    torch.manual_seed(7)
    vae = diffusers.AutoencoderKL.from_config(tiny_models.build("sd1").vae.config)
    path = tmp_path / "vae.safetensors"
    if form == "ldm":
        ldm_files.save(path, ldm_files.vae(vae, prefix=""))
    elif form == "ldm in a model":
        ldm_files.save(path, ldm_files.vae(vae))
    elif form == "diffusers":
        ldm_files.save(path, vae.state_dict())
    else:
        path = tmp_path / "vae"
        vae.save_pretrained(path / "vae" if form == "model folder" else path)
    if of == "file":
        names = dict.fromkeys(ldm_files.vae(vae))
        model = single_file(model_folder, tmp_path, "sd1", **names)
    else:
        model = ModelToIngest(str(model_folder("sd1")))
    folder = ingest(ModelToIngest(model.source, vae=str(path), config=model.config), tmp_path / "cache")
    pipeline, original = diffusers.StableDiffusionPipeline.from_pretrained(folder), tiny_models.build("sd1")
    original.vae = vae
    assert_equal_weights(pipeline, original)


def test_variants_shards_and_pickles(model_folder: Folder, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plain = ingest(ModelToIngest(str(model_folder("sd1"))), cache)
    whole = tiny_models.copy(model_folder("sd1"), tmp_path / "variant")
    for part in ("unet", "vae"):
        tiny_models.use_variant(whole, part, "fp16")
    assert ingest(ModelToIngest(str(whole), variant="fp16"), cache) == plain, "text encoders may lack it"

    shards = tiny_models.copy(model_folder("sd1"), tmp_path / "shards")
    (shards / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    tiny_models.build("sd1").unet.save_pretrained(shards / "unet", max_shard_size="500KB")
    assert len(list((shards / "unet").glob("*.safetensors"))) > 1
    assert ingest(ModelToIngest(str(shards)), cache) == plain

    pickles = tiny_models.copy(model_folder("sd1"), tmp_path / "pickles")
    for part in ("unet", "text_encoder"):
        tiny_models.use_pickle(pickles, part)
    assert ingest(ModelToIngest(str(pickles), allow_pickle=True), cache) == plain


def test_vaes_of_old_folders_are_understood(model_folder: Folder, tmp_path: Path) -> None:
    folder = tiny_models.copy(model_folder("sd1"), tmp_path / "old")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for ours, old in new.items():
        tensors = {
            name.replace(f"attentions.0.{ours}", f"attentions.0.{old}"): t for name, t in tensors.items()
        }
    ldm_files.save(path, tensors)
    made = ingest(ModelToIngest(str(folder)), tmp_path / "cache")
    assert made == ingest(ModelToIngest(str(model_folder("sd1"))), tmp_path / "cache")


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float8_e4m3fn, torch.float16),
        (torch.float8_e5m2, torch.float16),
    ],
)
def test_dtypes_are_kept(
    model_folder: Folder, tmp_path: Path, stored: torch.dtype, kept: torch.dtype
) -> None:
    pipeline = tiny_models.build("sd1")
    found = ldm_files.to_dtype(ldm_files.tensors("sd1", pipeline.components), stored)
    path = ldm_files.save(tmp_path / "m.safetensors", found)
    folder = ingest(ModelToIngest(str(path), config=str(model_folder("sd1"))), tmp_path / "cache")
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {kept}
    wanted = pipeline.unet.conv_in.weight.to(stored).float()
    assert torch.equal(weights["conv_in.weight"].float(), wanted), "float16 has all values of fp8"


def unlike_encoders(model_folder: Folder, tmp_path: Path) -> tuple[Any, str]:
    """A tiny SDXL with text encoders of unlike widths, by which diffusers tells them apart; its folder."""
    pipeline = tiny_models.build("sdxl")
    for part, kind, width in (
        ("text_encoder", CLIPTextModel, 24),
        ("text_encoder_2", CLIPTextModelWithProjection, 40),
    ):
        config = getattr(pipeline, part).config
        config.hidden_size = width
        setattr(pipeline, part, kind(config).eval())
    pipeline.save_pretrained(tmp_path / "unlike")
    return pipeline, str(tmp_path / "unlike")


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_pictures_are_those_of_diffusers_own_conversion(
    model_folder: Folder, tmp_path: Path, family: str
) -> None:
    if family == "sdxl":
        original, config = unlike_encoders(model_folder, tmp_path)
    else:
        original, config = tiny_models.build(family), str(model_folder(family))
    path = ldm_files.write(tmp_path / "m.safetensors", family, original)
    without = {} if family == "sdxl" else {"safety_checker": None}
    theirs = type(original).from_single_file(str(path), config=config, local_files_only=True, **without)
    folder = ingest(ModelToIngest(str(path), config=config), tmp_path / "cache")
    ours = type(original).from_pretrained(folder)
    assert_equal_weights(ours, theirs)
    pictures = []
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        made = pipeline(
            "a red circle", height=64, width=64, num_inference_steps=3, generator=generator, output_type="np"
        )
        pictures.append(made.images[0])
    error = float(np.mean((pictures[0] - pictures[1]) ** 2))
    assert error < 1e-5, "at least 50 dB"
    assert pictures[0].std() > 0.01
