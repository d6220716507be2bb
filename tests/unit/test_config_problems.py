"""A stopping ingress replica has time for the longest request, or says at the start that it has not."""

from pathlib import Path
from typing import Any

import pytest

from deployments.engine.model_source import load_model_info
from serve.app import build_app
from serve.capacity.config_problems import check_drain, drain_problem, drain_timeout_s
from serve.config.app import AppConfig, ConfigError
from serve.config.model import CostModelFile
from tests.unit.test_admission import COST

# Ten images of 128x128 take forwards of 16 rows and then 4: 0.8 s each, 40 calls for 20 steps.
SMALL = {"max_width": 128, "max_height": 128, "max_num_inference_steps": 20}
ROWS = {"max_rows": 16, "rows_per_forward": 16}


def config(**sections: Any) -> AppConfig:
    return AppConfig.model_validate({"denoiser": ROWS, "limits": SMALL} | sections)


def problem(**sections: Any) -> str | None:
    of = config(**sections)
    return drain_problem(of, load_model_info(of.model.source()), COST)


@pytest.mark.parametrize(
    ("limits", "itself_s"),
    [
        ({}, 2 * 40 * 0.8),
        ({"max_num_inference_steps": 30}, 2 * 60 * 0.8),
        ({"max_num_images": 1}, 40 * 0.4),  # deterministic: always eight rows
        ({"max_width": 256}, 3 * 40 * 0.8),  # half as many rows, each twice as long
        ({"max_width": 256, "max_pixels": 128 * 128}, 2 * 40 * 0.8),
    ],
)
def test_the_number_that_is_needed_is_what_the_longest_request_takes(
    limits: dict[str, int], itself_s: float
) -> None:
    allowed = SMALL | limits | {"max_wait_s": 5.5}
    told = problem(limits=allowed, ingress={"drain_timeout_s": 5.5 + itself_s - 0.1})
    assert told is not None
    assert told.startswith("ingress.drain_timeout_s: ")
    assert f"{5.5 + itself_s + 0.5:.0f} are needed" in told
    assert problem(limits=allowed, ingress={"drain_timeout_s": 5.5 + itself_s + 0.1}) is None


def test_with_known_costs_the_application_does_not_start(tmp_path: Path) -> None:
    file = CostModelFile(path="models/shapes", dtype="float32", device="CPU", cost_model=COST)
    (tmp_path / "cost_model.json").write_text(file.model_dump_json())
    model = {"cost_model": str(tmp_path / "cost_model.json")}
    with pytest.raises(ConfigError, match=r"ingress\.drain_timeout_s: 70 s is too short, 125 are needed"):
        build_app(config(model=model, ingress={"drain_timeout_s": 70}))


def test_nobody_has_to_say_how_long_an_ingress_has(tmp_path: Path) -> None:
    """With known costs it is just long enough; before costs are known it is ten minutes after the wait."""
    file = CostModelFile(path="models/shapes", dtype="float32", device="CPU", cost_model=COST)
    (tmp_path / "cost_model.json").write_text(file.model_dump_json())
    known = config(model={"cost_model": str(tmp_path / "cost_model.json")})
    info = load_model_info(known.model.source())
    check_drain(known, info)
    assert 124 <= drain_timeout_s(known, info) <= 125, "60 s of waiting and 64 s that the longest takes"
    assert drain_timeout_s(config(), info) == 60 + 600
    assert drain_problem(config(), info, COST) is None
    slow = config(limits={"max_num_inference_steps": 1000})
    told = drain_problem(slow, info, COST)
    assert told is not None
    assert "660 s is too short" in told
