"""`midstep profile`, and stages whose cost is known."""

from pathlib import Path

import pytest
import torch
import yaml

from cluster.cli import main
from deployments.batching import Batching
from deployments.cost_measurement import CostMeasurement
from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.engine.model_source import ModelSource, Placement
from deployments.vae_decoder import VaeDecoder
from serve.config.app import AppConfig
from tests.tiny_models import SHAPES_MODEL

ONE_MS = Curve(0.001, 1, 0.001)
COST = CostModel(ONE_MS, StageCost((((16, 16), ONE_MS),)), StageCost((((16, 16), ONE_MS),)))


def test_a_profile_is_measured_once_and_then_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = {"model": {"device": "cpu", "sizes": ["192x128"]}, "denoiser": {"max_rows": 8}}
    config, output = tmp_path / "config.yaml", tmp_path / "cost_model.json"
    application = {"name": "midstep", "import_path": "serve.app:build_app", "args": args}
    config.write_text(yaml.safe_dump({"applications": [application]}))
    main(["profile", str(config), "--output", str(output)])
    assert str(output) in capsys.readouterr().out
    known = AppConfig.model_validate({"model": {"cost_model": str(output)}}).model.known_cost()
    assert known is not None
    assert [shape for shape, _ in known.forward.curves] == [(16, 16), (16, 24)]
    counts = [count for count, _ in known.forward.curve((16, 16)).residuals]
    assert counts == [1, 2, 4, 8], "each was timed"

    def must_not_run(*_: object) -> None:
        raise AssertionError("measured although it is known")

    measurement = CostMeasurement(((16, 16),), known)
    assert measurement.decode_cost(must_not_run, 4) == known.decode
    assert measurement.encode_cost(must_not_run, 4) == known.encode


def test_an_output_that_cannot_be_written_is_told_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    output = str(tmp_path / "file" / "cost_model.json")
    with pytest.raises(SystemExit):
        main(["profile", "serve_config.yaml", "--output", output])
    assert f"argument --output: {output}: File exists" in capsys.readouterr().err


def test_the_decoder_holds_the_device_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five images of one size and one of another. Three images take the longest allowed time."""
    decoder = VaeDecoder(
        ModelSource(str(SHAPES_MODEL)),
        Placement(device="simulated"),
        Batching(8, 0.005),
        num_threads=1,
        max_hold_s=0.0035,
        measurement=CostMeasurement(((16, 16),), COST),
    )
    decode, sizes = decoder._decoder.decode, []

    def recorded(latents: list[torch.Tensor]) -> list[object]:
        sizes.append(len(latents))
        return decode(latents)

    monkeypatch.setattr(decoder._decoder, "decode", recorded)
    latents = [*torch.zeros(5, 8, 16, 16), torch.zeros(8, 16, 24)]
    shapes = [pixels.shape for pixels in decoder._decode_by_shape(latents)]
    assert shapes == [(128, 128, 3)] * 5 + [(128, 192, 3)]
    assert sorted(sizes) == [1, 2, 3]
