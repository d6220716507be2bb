"""A served model gets ready before its first request."""

from dataclasses import replace

import pytest

from deployments.engine.model_source import load_model_info
from serve.config.app import AppConfig
from serve.served_model import ServedModel


@pytest.mark.parametrize(("is_linear", "told"), [(True, ""), (False, "'DPM++ 2M' at 20 steps")])
def test_what_is_wrong_with_the_default_sampler_is_told_of_at_start(
    is_linear: bool, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = AppConfig()
    info = load_model_info(config.model.source())
    schedule = {**info.scheduler_config, "thresholding": not is_linear}
    ServedModel.of(config, replace(info, scheduler_config=schedule), lambda: None).prepare()
    assert told in caplog.text
    assert bool(told) == bool(caplog.records)
