"""The shipped modelled devices: their arithmetic, and whether it suffices to serve them simulated."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from cluster.devices.h200 import FILES, FOLDER, HOST_GB_PER_S, TO_DEVICE_GB_PER_S
from deployments.cost_measurement import CostMeasurement
from deployments.devices import unets
from deployments.engine.fingerprint import model_ref
from deployments.engine.model_source import load_model_info
from serve.config.app import AppConfig
from serve.config.model import CostModelFile


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_what_the_arithmetic_says(name: str) -> None:
    file = CostModelFile.model_validate_json((FOLDER / name).read_bytes())
    assert file == FILES[name]
    assert file.device.startswith("modelled")
    assert file.device.endswith("not measured")


def test_rows_cost_their_operations() -> None:
    [(shape, curve)] = FILES["h200-sdxl.json"].cost_model.forward.curves
    assert shape == (128, 128)
    assert curve.seconds(9) - curve.seconds(1) == pytest.approx(8 * 6.761 / 474)
    assert curve.seconds(1) == pytest.approx(0.008 + 6.761 / 474)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_loads_take_the_time_of_their_bytes(family: str) -> None:
    config = json.loads((FOLDER / family / "unet" / "config.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    gb = 2e-9 * sum(parameter.numel() for parameter in unet.parameters())
    load_s = gb / HOST_GB_PER_S + gb / TO_DEVICE_GB_PER_S
    assert FILES[f"h200-{family}.json"].cost_model.load_s == pytest.approx(load_s, rel=1e-3)


def test_files_from_before_there_were_loads_and_settings_are_read() -> None:
    written = json.loads((FOLDER / "h200-sdxl.json").read_text())
    del written["cost_model"]["load_s"], written["attention"], written["compile"]
    file = CostModelFile.model_validate(written)
    assert (file.cost_model.load_s, file.attention, file.compile) == (0.0, "sdpa", False)


@pytest.mark.parametrize(("family", "size", "cap"), [("sd15", 512, 12), ("sdxl", 1024, 12)])
def test_a_model_without_weights_can_be_served_simulated(family: str, size: int, cap: int) -> None:
    config = AppConfig.model_validate(
        {
            "model": {
                "path": f"cluster/devices/{family}",
                "device": "simulated",
                "dtype": "bfloat16",
                "cost_model": f"cluster/devices/h200-{family}.json",
            },
            "denoiser": {"max_rows": 12},
        }
    )
    source = config.model.source()
    info = load_model_info(source)
    config.check_for(info)
    assert (info.default_height, info.default_width) == (size, size)
    measurement = CostMeasurement(config.latent_shapes(info), config.model.known_cost())
    model = model_ref(source)
    found = unets(model, config.placement(), measurement, config.engine_config(info), 1)
    assert (found.loader.describe(model).time_ids_width > 0) == (family == "sdxl")
    assert found.config.row_counts == (1, 2, 4, 6, 8, cap), "padded as on CUDA, as far as max_rows allows"
    assert not list(Path(source.path).rglob("*.safetensors"))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_configurations_are_of_diffusers_own_classes(family: str) -> None:
    index = json.loads((FOLDER / family / "model_index.json").read_text())
    for part in ("unet", "vae"):
        config = json.loads((FOLDER / family / part / "config.json").read_text())
        assert config["_class_name"] == index[part][1]
