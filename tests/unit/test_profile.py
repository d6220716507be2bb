"""`midstep profile`, and stages whose cost is known."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from cluster.cli import main
from deployments.cost_measurement import CostMeasurement
from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.engine.fitting import Fitting
from deployments.forwards import Forwards
from deployments.shaped_batches import ShapedBatches
from serve.config.app import AppConfig

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
    assert [rank for rank, _ in known.forward.adapted] == [16, 32, 64, 128], "though none are offered"
    factors = [1.0, *(factor for _, factor in known.forward.adapted)]
    assert factors == sorted(factors)
    assert known.encode_picture is not None


def test_with_known_costs_the_first_request_pays_for_no_warm_up() -> None:
    """The most items of a call and one are warmed up, once each, and nothing is timed."""
    shapes = ((16, 16), (16, 24))
    measurement = CostMeasurement(shapes, COST)
    calls: list[object] = []
    assert measurement.encode_cost(calls.append, 8) == COST.encode
    assert calls == [8, 1]
    for cost_of, cost in (
        (measurement.decode_cost, COST.decode),
        (measurement.encode_picture_cost, COST.picture),
    ):
        calls.clear()
        assert cost_of(lambda *call: calls.append(call), 4) == cost
        assert calls == [(shape, count) for shape in shapes for count in (4, 1)]


def test_an_output_that_cannot_be_written_is_told_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    output = str(tmp_path / "file" / "cost_model.json")
    with pytest.raises(SystemExit):
        main(["profile", "serve_config.yaml", "--output", output])
    assert f"argument --output: {output}: File exists" in capsys.readouterr().err


def test_the_decoder_holds_the_device_no_longer_than_it_may() -> None:
    """Five images of one size and one of another. Three images take the longest allowed time."""
    sizes = []

    def decode(latents: Sequence[tuple[int, int]]) -> Sequence[str]:
        sizes.append(len(latents))
        return [f"{height}x{width}" for height, width in latents]

    batches: ShapedBatches[None, tuple[int, int], str] = ShapedBatches(
        lambda _, latents: decode(latents),
        lambda _, shape: shape,
        COST.decode,
        0.0035,
        Fitting("images"),
        Forwards(),
    )
    items = [(16, 16)] * 4 + [(16, 24), (16, 16)]
    assert batches.run([(None, item) for item in items]) == ["16x16"] * 4 + ["16x24", "16x16"]
    assert sorted(sizes) == [1, 2, 3]
