"""The simulated device takes the given time and returns what the stages expect."""

from dataclasses import replace

import pytest
import torch

from deployments.engine.cost import Curve, StageCost
from deployments.engine.device_step import warm_up
from deployments.engine.engine import Engine
from deployments.engine.engine_config import EngineConfig
from deployments.engine.messages import Checkpoint, DenoisedLatents, StepProgress
from deployments.engine.model_pool import KnownModel, OneModel
from deployments.engine.prompt_text import PromptText
from deployments.engine.samplers import SamplerTables
from deployments.engine.simulated import (
    SimulatedDecoder,
    SimulatedDevice,
    SimulatedSteps,
    SimulatedTextEncoder,
    SimulatedUNet,
)
from tests.generation_requests import denoise_request
from tests.unit.test_samplers import STABLE_DIFFUSION

NOTHING = Curve(1e-9, 1, 0.0)


def test_a_step_takes_what_its_rows_cost() -> None:
    slept: list[float] = []
    curve = Curve(0.04, 2, 0.01)
    device = SimulatedDevice(lambda: sum(slept), slept.append)
    steps = SimulatedSteps(StageCost((((16, 24), curve),)), device)
    for rows in (1, 4, 8):
        warm_up(SimulatedUNet({"in_channels": 4, "out_channels": 4}), steps, (16, 24), rows)
    assert slept == pytest.approx([curve.seconds(rows) for rows in (1, 4, 8)])


@pytest.mark.parametrize("is_xl", [False, True])
def test_what_leaves_the_device_has_the_shapes_of_real_latents(is_xl: bool) -> None:
    """Shapes of a preview, checkpoints and latents, also of a request resumed from such a checkpoint."""
    cost = StageCost((((16, 24), NOTHING),))
    unet = SimulatedUNet(
        {"in_channels": 4, "out_channels": 4, "addition_embed_type": "text_time" if is_xl else None}
    )
    config = EngineConfig(16, 16, 8, (16, 24), row_counts=(8, 16), checkpoint_interval_s=0.0)
    steps = SimulatedSteps(cost, SimulatedDevice(runs_ahead=False))
    models = OneModel(KnownModel(unet, SamplerTables(STABLE_DIFFUSION), cost), steps)
    engine = Engine(models, config)
    encoder = SimulatedTextEncoder(NOTHING, is_xl)
    text = PromptText("a red star", None, guided=True, deterministic=False)
    embeds = encoder.assemble(text, encoder.encode(encoder.texts(text)))
    request = denoise_request("a", embeds, 3, width=192, preview_steps=frozenset({1}))

    engine.add(request)
    preview, checkpoint = engine.step().events
    assert isinstance(preview, StepProgress)
    assert isinstance(checkpoint, Checkpoint)
    engine.abort("a")
    engine.add(replace(request, resume_from=checkpoint))
    [second] = engine.step().events
    assert isinstance(second, Checkpoint)
    assert (second.step, second.state.shape[1:]) == (2, (4, 16, 24))
    [finished] = engine.step().events
    assert isinstance(finished, DenoisedLatents)
    for tensor in (preview.preview_latents, finished.latents):
        assert (tensor.shape, tensor.device.type) == ((4, 16, 24), "cpu")


@pytest.mark.parametrize("is_xl", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_embeddings_have_the_parts_of_real_ones(is_xl: bool, guided: bool) -> None:
    encoder = SimulatedTextEncoder(NOTHING, is_xl)
    text = PromptText("a red star", None, guided, deterministic=False)
    embeds = encoder.assemble(text, encoder.encode(encoder.texts(text)))
    assert (embeds.negative_prompt_embeds is not None) == guided
    assert (len(embeds.pooled_prompt_embeds) > 0) == is_xl
    assert embeds.tokens.given == 5, "three words, a start and an end"


def test_pictures_are_grey_and_of_the_right_size() -> None:
    decoder = SimulatedDecoder(StageCost((((16, 24), NOTHING),)), scale_factor=8)
    [pixels] = decoder.decode([torch.zeros(4, 16, 24)])
    assert pixels.shape == (128, 192, 3)
    assert (pixels == 128).all()
