"""A served model gets ready before its first request."""

from dataclasses import replace

import pytest

from deployments.engine.model_source import load_model_info
from deployments.engine.samplers import SAMPLERS
from serve.config.app import AppConfig
from serve.http.warnings import request_warnings
from serve.served_model import ServedModel
from serve.wanted import Wanted


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


def test_samplers_that_ignore_zero_terminal_snr_say_so() -> None:
    """All samplers have tables for such a model. diffusers' own of four know nothing of its schedule."""
    config = AppConfig()
    info = load_model_info(config.model.source())
    schedule = {**info.scheduler_config, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    model = ServedModel.of(config, replace(info, scheduler_config=schedule), lambda: None)
    warned = set()
    for sampler in SAMPLERS:
        request = model.accept(Wanted("a star", sampler=sampler, num_inference_steps=8), "id").request
        if request.warnings:
            assert repr(sampler) in request.warnings[0]
            assert request_warnings(request) == list(request.warnings)
            warned.add(sampler)
    assert warned == {"DEIS", "Heun", "KDPM2", "PLMS"}
    plain = ServedModel.of(config, info, lambda: None)
    assert plain.accept(Wanted("a star", sampler="PLMS"), "id").request.warnings == ()
