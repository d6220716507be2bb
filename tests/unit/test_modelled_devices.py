"""The shipped modelled devices: their arithmetic, and whether it suffices to serve them simulated."""

import json
from pathlib import Path

import pytest

from cluster.devices.h200 import FILES, FOLDER
from deployments.cost_measurement import CostMeasurement
from deployments.devices import unet_and_steps
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
    unet, _, engine = unet_and_steps(source, config.placement(), measurement, config.engine_config(info))
    assert (unet.time_ids_width > 0) == (family == "sdxl")
    assert engine.row_counts == (1, 2, 4, 6, 8, cap), "padded as on CUDA, as far as max_rows allows"
    assert not list(Path(source.path).rglob("*.safetensors"))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_configurations_are_of_diffusers_own_classes(family: str) -> None:
    index = json.loads((FOLDER / family / "model_index.json").read_text())
    for part in ("unet", "vae"):
        config = json.loads((FOLDER / family / part / "config.json").read_text())
        assert config["_class_name"] == index[part][1]
