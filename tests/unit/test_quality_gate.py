"""The gate before quantized models: their loss is measured once, and too much of it is refused."""

import asyncio
import logging
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments import quality_gate as module
from deployments.batching import Batching
from deployments.cost_measurement import CostMeasurement
from deployments.denoiser import Denoiser
from deployments.engine import quantization
from deployments.engine.adapters import AdapterMemory
from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.engine.engine_config import EngineConfig
from deployments.engine.fingerprint import model_ref
from deployments.engine.local_engine import engine_of
from deployments.engine.model_source import ModelLoadError, ModelRef, ModelSource, Placement
from deployments.engine.stage_errors import Fault, StageError
from deployments.kept_costs import KeptCosts
from deployments.quality_gate import MIN_PSNR_DB, QualityGate, QuantizationLoss, quantization_loss

INT8 = Placement(device="cpu", quantization="int8")
Folder = Callable[[str], Path]
CURVE = Curve(0.01, 1, 0.01)
ALL_COSTS = StageCost((((16, 16), CURVE),))


@pytest.fixture
def kept(tmp_path: Path) -> KeptCosts:
    return KeptCosts(str(tmp_path), {})


def ref(model_folder: Folder, name: str) -> ModelRef:
    return model_ref(ModelSource(str(model_folder(name))))


def test_the_embedded_model_passes_in_int8_and_is_measured_once(
    model_folder: Folder,
    kept: KeptCosts,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ref(model_folder, "shapes")
    with caplog.at_level(logging.INFO, "ray.serve"):
        QualityGate(INT8, kept).check(model)
        monkeypatch.setattr(module, "quantization_loss", None)
        QualityGate(INT8, kept).check(model)
    [first, second] = [record.getMessage() for record in caplog.records if "PSNR" in record.getMessage()]
    assert first == second
    [psnr_db] = re.findall(r"^model\.quantization: int8 of .*shapes: median PSNR (.*) dB, latent", first)
    assert float(psnr_db) > MIN_PSNR_DB + 10


def test_rounding_to_three_values_is_refused(
    model_folder: Folder, kept: KeptCosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "_LARGEST", 1)
    words = r"shapes': model\.quantization: int8 changes its pictures too much \(median PSNR \d.*at least \d"
    with pytest.raises(ModelLoadError, match=words):
        QualityGate(INT8, kept).check(ref(model_folder, "shapes"))


def test_a_loss_that_cannot_be_kept_is_measured_once_all_the_same(
    model_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[ModelSource] = []

    def loss(source: ModelSource, _: Placement) -> QuantizationLoss:
        measured.append(source)
        return QuantizationLoss(MIN_PSNR_DB - 1, 0.5)

    monkeypatch.setattr(module, "quantization_loss", loss)
    gate, model = QualityGate(INT8, None), ref(model_folder, "sd1")
    for _ in range(2):
        with pytest.raises(ModelLoadError, match="changes its pictures too much"):
            gate.check(model)
    assert len(measured) == 1


def test_a_device_without_room_to_compare_refuses_the_model(
    model_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(*_: object) -> QuantizationLoss:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "quantization_loss", loss)
    gate, model = QualityGate(INT8, None), ref(model_folder, "sd1")
    with pytest.raises(ModelLoadError, match=r"model\.quantization: the device has no room"):
        gate.check(model)
    monkeypatch.setattr(module, "quantization_loss", lambda *_: QuantizationLoss(50.0, 0.01))
    gate.check(model)  # there may be room later


def test_no_two_models_are_there_at_once(model_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[weakref.ref[Any]] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        assert not any(one() for one in there)
        made = engine_of(*args, **kwargs)
        there.append(weakref.ref(made.engine))
        return made

    monkeypatch.setattr(module, "engine_of", counted)
    quantization_loss(ModelSource(str(model_folder("sd1"))), INT8)
    assert len(there) == 2
    assert not any(one() for one in there)


@pytest.mark.parametrize("family", ["sd2", "sdxl", "sd1-inpainting"])
def test_every_family_can_be_measured(model_folder: Folder, family: str) -> None:
    loss = quantization_loss(ModelSource(str(model_folder(family))), INT8)
    assert 0 < loss.latent_distance < 0.5
    assert loss.psnr_db > 10


def test_without_quantization_there_is_no_loss(model_folder: Folder) -> None:
    loss = quantization_loss(ModelSource(str(model_folder("sd1"))), replace(INT8, quantization="none"))
    assert loss == QuantizationLoss(float("inf"), 0.0)


@pytest.mark.parametrize(("psnr_db", "passes"), [(MIN_PSNR_DB, True), (MIN_PSNR_DB - 0.1, False)])
def test_a_denoiser_refuses_any_model_below_the_bound(
    model_folder: Folder, kept: KeptCosts, psnr_db: float, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one at its start, others when they are first asked for."""

    def loss(source: ModelSource, placement: Placement) -> QuantizationLoss:
        assert placement == INT8
        return QuantizationLoss(psnr_db if source.path == second.source.path else 50.0, 0.01)

    monkeypatch.setattr(module, "quantization_loss", loss)
    first, second = ref(model_folder, "sd1"), ref(model_folder, "sd2")
    measurement = CostMeasurement(((16, 16),), CostModel(CURVE, ALL_COSTS, ALL_COSTS), kept)

    def started(model: ModelRef) -> Denoiser:
        config = EngineConfig(4, 4, 2, (16, 16))
        return Denoiser(model, INT8, config, Batching(4, 0.0), 1, 2, 0.0, AdapterMemory(), measurement)

    cost = started(first).cost(second)
    if passes:
        assert asyncio.run(cost)[0].curves
        started(second)
        return
    with pytest.raises(StageError) as failed:
        asyncio.run(cost)
    assert failed.value.fault is Fault.UNLOADABLE
    with pytest.raises(ModelLoadError, match=r"model\.quantization: int8 changes its pictures too much"):
        started(second)
