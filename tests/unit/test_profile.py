"""`midstep profile`, and stages whose cost is known."""

import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cluster import profile as profile_module
from cluster.cli import main
from deployments.cost_measurement import CostMeasurement, MeasuredOn
from deployments.devices import Vae, unets
from deployments.engine.cost import CostModel, Curve, StageCost
from deployments.engine.engine_config import EngineConfig
from deployments.engine.fingerprint import model_ref
from deployments.engine.fitting import Fitting
from deployments.engine.model_source import ModelLoadError, ModelSource, Placement, load_model_info
from deployments.forwards import Forwards
from deployments.kept_costs import device_name
from deployments.shaped_batches import ShapedBatches
from serve.app import _cost_measurement
from serve.config.app import AppConfig

ONE_MS = Curve(0.001, 1, 0.001)
COST = CostModel(ONE_MS, StageCost((((16, 16), ONE_MS),)), StageCost((((16, 16), ONE_MS),)))


def alone_on_the_device(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Asserts that a stage's parts are loaded when those of the others are gone. Returns what was loaded."""
    there: list[weakref.ref[Any]] = []

    def watched(load: Callable[..., Any]) -> Callable[..., Any]:
        def loaded(*args: Any) -> Any:
            assert not any(one() for one in there)
            part = load(*args)
            weights = part.decoder if isinstance(part, Vae) else getattr(part, "first", part)
            there.append(weakref.ref(weights))
            return part

        return loaded

    for name in ("text_encoder", "unets", "vae"):
        monkeypatch.setattr(profile_module, name, watched(getattr(profile_module, name)))
    return there


def test_a_profile_is_measured_once_and_then_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = {"model": {"device": "cpu", "sizes": ["192x128"]}, "denoiser": {"max_rows": 8}}
    config, output = tmp_path / "config.yaml", tmp_path / "cost_model.json"
    application = {"name": "midstep", "import_path": "serve.app:build_app", "args": args}
    config.write_text(yaml.safe_dump({"applications": [application]}))
    there = alone_on_the_device(monkeypatch)
    main(["profile", str(config), "--output", str(output)])
    assert len(there) == 3
    assert str(output) in capsys.readouterr().out
    served = AppConfig.model_validate({"model": {"cost_model": str(output)}})
    file = served.model.cost_file()
    assert file is not None
    measurement = _cost_measurement(served, load_model_info(served.model.source()), "")
    assert measurement.measured_on == MeasuredOn(file.device, file.dtype)
    assert (file.dtype, file.attention, file.compile) == ("float32", "sdpa", False)
    assert file.device == device_name(torch.device("cpu"))
    known = file.cost_model
    assert [shape for shape, _ in known.forward.curves] == [(16, 16), (16, 24)]
    counts = [count for count, _ in known.forward.curve((16, 16)).residuals]
    assert counts == [1, 2, 4, 8], "each was timed"
    assert [rank for rank, _ in known.forward.adapted] == [16, 32, 64, 128], "though none are offered"
    factors = [1.0, *(factor for _, factor in known.forward.adapted)]
    assert factors == sorted(factors)
    assert known.encode_picture is not None


def test_a_profile_has_the_allocator_of_replicas_before_torch_is_imported(tmp_path: Path) -> None:
    """The file does not exist, so nothing is measured."""
    program = (
        "import os, sys; sys.addaudithook(lambda event, args: print(os.environ['PYTORCH_CUDA_ALLOC_CONF'])"
        " if event == 'import' and args[0] == 'torch' else None)\n"
        f"from cluster.cli import main; main(['profile', {str(tmp_path / 'none.yaml')!r}])"
    )
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert "none.yaml: No such file" in done.stderr
    assert done.stdout.splitlines()[0] == "expandable_segments:True"


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


def test_costs_from_another_device_are_warned_of_by_name_and_from_another_precision_refused(
    model_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    placement = Placement("cpu", "auto")
    model = model_ref(ModelSource(str(model_folder("sd1"))))
    engine = EngineConfig(max_rows=2, rows_per_forward=2, deterministic_rows=2, latent_shape=(8, 8))
    here = device_name(torch.device("cpu"))

    def start(device: str, dtype: str) -> None:
        unets(model, placement, CostMeasurement(((8, 8),), COST, None, MeasuredOn(device, dtype)), engine, 1)

    start(here, "float32")
    assert "was measured on" not in caplog.text
    start("NVIDIA L4", "float32")
    assert f"model.cost_model was measured on NVIDIA L4, and this is {here}" in caplog.text
    with pytest.raises(ModelLoadError, match=r"measured in bfloat16 on NVIDIA L4, and .* in float32"):
        start("NVIDIA L4", "bfloat16")


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


def test_the_decoder_takes_no_more_of_a_size_than_have_room() -> None:
    sizes = []

    def decode(latents: Sequence[tuple[int, int]]) -> Sequence[str]:
        sizes.append((latents[0], len(latents)))
        return [""] * len(latents)

    batches: ShapedBatches[None, tuple[int, int], str] = ShapedBatches(
        lambda _, latents: decode(latents),
        lambda _, shape: shape,
        COST.decode,
        1.0,
        Fitting("images"),
        Forwards(),
        lambda shape: 1024 // (shape[0] * shape[1]),
    )
    batches.run([(None, shape) for shape in [(16, 16)] * 5 + [(16, 32)] * 3])
    assert sorted(sizes) == [((16, 16), 1), ((16, 16), 4), ((16, 32), 1), ((16, 32), 2)]
