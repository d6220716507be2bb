"""Kept costs: measured once for a device, a model and its versions, then known to all replicas."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.cost_measurement import CostMeasurement
from deployments.engine.cost import Curve, StageCost
from deployments.engine.engine_config import EngineConfig
from deployments.kept_costs import KeptCosts

SHAPES = ((16, 16),)
ENGINE = EngineConfig(max_rows=4, rows_per_forward=None, deterministic_rows=2, latent_shape=(16, 16))


class Device:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def forward(self, _: tuple[int, int], __: int, ___: int = 0) -> None:
        self.calls += 1

    def encode(self, _: int) -> None:
        self.calls += 1


def measurement(folder: Path, dtype: str = "float32") -> CostMeasurement:
    return CostMeasurement(SHAPES, None, KeptCosts(str(folder), {"dtype": dtype}))


STAGES: dict[str, Callable[[CostMeasurement, Device], Curve | StageCost]] = {
    "encoder": lambda one, device: one.encode_cost(device.encode, 4),
    "denoiser": lambda one, device: one.forward_cost(device.forward, ENGINE),
    "decoder": lambda one, device: one.decode_cost(device.forward, 4),
    "picture-encoder": lambda one, device: one.encode_picture_cost(device.forward, 4),
}


@pytest.mark.parametrize("stage", STAGES)
def test_what_one_replica_has_measured_the_next_one_knows(stage: str, tmp_path: Path) -> None:
    first, second = Device(), Device()
    cost = STAGES[stage](measurement(tmp_path), first)
    assert STAGES[stage](measurement(tmp_path), second) == cost
    # A denoiser warms up each of its three row counts once, the others their largest and one.
    assert second.calls == (3 if stage == "denoiser" else 2) < first.calls
    [file] = tmp_path.iterdir()
    assert (file.stat().st_mode & 0o777, json.loads(file.read_text())["measured_with"]["stage"]) == (
        0o600,
        stage,
    )


def test_of_another_model_or_from_a_broken_file_nothing_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    STAGES["decoder"](measurement(tmp_path), Device())
    another = Device()
    STAGES["decoder"](measurement(tmp_path, "bfloat16"), another)
    assert another.calls > 0
    for file in tmp_path.iterdir():
        file.write_text('{"cost": {"curves": []}}')
    again = Device()
    STAGES["decoder"](measurement(tmp_path), again)
    assert again.calls > 0
    assert "measuring again" in caplog.text


def test_where_nothing_can_be_kept_it_is_measured_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        device = Device()
        STAGES["decoder"](measurement(tmp_path / "file" / "costs"), device)
        assert device.calls > 0
    assert "cannot be kept" in caplog.text
