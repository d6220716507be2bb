"""Models that cannot be served are refused at start, with the reason."""

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from benchmarks.random_models import TINY_SD15
from deployments.engine.device_step import EagerSteps, warm_up
from deployments.engine.model_source import ModelLoadError, ModelSource, Placement, load_model_info
from deployments.engine.models import _xformers_problem, load_unet, load_vae, place_unet, unet_bank
from serve.config.model import PROJECT_FOLDER
from tests import tiny_models
from tests.conftest import LoadedModel, finish

Folder = Callable[[str], Path]


def changed(folder: Path, target: Path, file: str, **changes: Any) -> ModelSource:
    return ModelSource(str(tiny_models.copy(folder, target, file, **changes)))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be read"):
        load_model_info(ModelSource(str(tmp_path)))


def test_another_kind_of_pipeline_is_refused(model_folder: Folder, tmp_path: Path) -> None:
    source = changed(model_folder("sd1"), tmp_path / "m", "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(ModelLoadError, match="is a FluxPipeline; served are StableDiffusionPipeline and"):
        load_model_info(source)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"in_channels": 8}, "an image to edit"), ({"time_cond_proj_dim": 32}, "its guidance embedded")],
)
def test_a_unet_that_needs_more_than_a_prompt_is_refused(
    model_folder: Folder, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    source = changed(model_folder("sd1"), tmp_path / "m", "unet/config.json", **changes)
    with pytest.raises(ModelLoadError, match=words):
        load_unet(source, Placement(device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_a_device_that_is_not_there_is_refused(model_folder: Folder) -> None:
    with pytest.raises(ModelLoadError, match="device: cuda cannot be used: "):
        load_unet(ModelSource(str(model_folder("sd1"))), Placement(device="cuda"))


def test_xformers_on_a_cpu_is_refused_with_the_reason(model_folder: Folder) -> None:
    with pytest.raises(
        ModelLoadError, match=r"attention: xformers cannot run on cpu in torch.float32.*Use attention: sdpa"
    ):
        load_unet(ModelSource(str(model_folder("sd1"))), Placement(device="cpu", attention="xformers"))


def test_kernels_of_xformers_that_do_not_load_are_named_with_both_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = import_module("xformers._cpp_lib")
    build = library._BuildInfo({"version": {"torch": "2.10.0+cu128", "cuda": 1208}})
    unloaded = library.xFormersInvalidLibException(build)
    monkeypatch.setattr(library, "_cpp_library_load_exception", unloaded)
    error = NotImplementedError("No operator\n  found")
    told = _xformers_problem(torch.device("cuda"), error)
    assert (
        f"is built for torch 2.10.0+cu128, and its kernels do not load beside torch {torch.__version__}"
        in told
    )
    assert "make serve ATTENTION=xformers" in told
    monkeypatch.setattr(library, "_cpp_library_load_exception", None)
    assert _xformers_problem(torch.device("cuda"), error) == "No operator found. Use attention: sdpa"


@pytest.mark.parametrize("package", ["deployments.tensor_files.architectures", "benchmarks.random_models"])
def test_xformers_is_quiet_where_diffusers_imports_it(package: str) -> None:
    code = f"import {package}; from diffusers import UNet2DConditionModel; import xformers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "xformers" not in (done.stdout + done.stderr).lower()


@pytest.mark.parametrize(
    ("has_cuda", "has_bfloat16", "dtype"),
    [(False, True, torch.float32), (True, True, torch.bfloat16), (True, False, torch.float16)],
)
def test_the_precision_suits_the_device_unless_it_is_said(
    has_cuda: bool, has_bfloat16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert Placement(dtype="auto").torch_dtype() is dtype
    assert Placement(device="cpu", dtype="auto").torch_dtype() is torch.float32
    assert Placement(dtype="float16").torch_dtype() is torch.float16


def test_bfloat16_is_refused_where_it_is_only_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(
        ModelLoadError,
        match=r"dtype: bfloat16 .* Tesla T4 \(compute capability 7\.5\) only emulates it\. Use .*float16",
    ):
        Placement(dtype="bfloat16").torch_dtype()
    assert Placement("cpu", "bfloat16").torch_dtype() is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert Placement(dtype="bfloat16").torch_dtype() is torch.bfloat16


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision_runs_and_is_near(load_model: Callable[..., LoadedModel], dtype: str) -> None:
    results = []
    for placement in (Placement(device="cpu"), Placement(device="cpu", dtype=dtype)):
        model = load_model("sdxl", placement)
        engine = model.engine(max_rows=2, rows_per_forward=2)
        engine.add(model.request("image", num_inference_steps=3, guidance_scale=2.0))
        [latents] = finish(engine).values()
        assert model.decoder.decode([latents])[0].dtype == "uint8"
        results.append(latents)
    error = (results[0] - results[1]).abs().mean() / results[0].abs().mean()
    assert error < 0.05


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated")
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("force_upcast", [None, True, False])
def test_a_vae_is_upcast_where_diffusers_pipeline_upcasts_it(
    model_folder: Folder, tmp_path: Path, family: str, force_upcast: bool | None
) -> None:
    source = changed(model_folder(family), tmp_path / "m", "vae/config.json", force_upcast=force_upcast)
    vae = load_vae(source, Placement(device="cpu", dtype="float16"))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(source.path, dtype=torch.float16)
    pipeline.set_progress_bar_config(disable=True)
    seen: list[torch.dtype] = []
    pipeline.vae.decoder.register_forward_pre_hook(lambda _, latents: seen.append(latents[0].dtype))
    pipeline("a red star", height=32, width=32, num_inference_steps=1)
    assert seen == [vae.dtype]


def test_the_engine_never_imports_ray() -> None:
    """This needs a separate process, because the tests themselves may have imported Ray."""
    modules = sorted(Path("deployments/engine").glob("*.py"))
    imports = "; ".join(
        f"import deployments.engine.{path.stem}" for path in modules if path.stem != "__init__"
    )
    script = f"import sys; {imports}; sys.exit(any(m.split('.')[0] in ('ray', 'serve') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=False).returncode == 0


def test_a_model_to_simulate_needs_no_text_encoders() -> None:
    """cluster/devices has configurations only."""
    for name, most in (("sd15", 11), ("sdxl", 10)):
        assert (
            load_model_info(ModelSource(str(PROJECT_FOLDER / "cluster" / "devices" / name))).max_clip_skip
            == most
        )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of torch's own
def test_no_compiled_forward_is_chosen_by_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every start gives the same bytes."""
    compile_fx = pytest.importorskip("torch._inductor.compile_fx")
    seen = []

    def compiled(graph: Any, inputs: Any, config_patches: dict[str, Any], **_: Any) -> Any:
        with torch._inductor.config.patch(config_patches):
            seen.append(torch._inductor.config.deterministic)
        return graph.forward

    monkeypatch.setattr(compile_fx, "compile_fx", compiled)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    placement = Placement(device="cpu", compile_cache=str(tmp_path))
    module = diffusers.UNet2DConditionModel(**TINY_SD15)
    unet = place_unet(module, placement, unet_bank(module, placement, 0))
    for rows in (1, 2):
        warm_up(unet.shape, EagerSteps(unet, 1), (16, 16), rows)
    assert seen == [True, True]
