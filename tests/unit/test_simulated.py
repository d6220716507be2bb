"""The simulated device takes the time that it is told to and gives what the stages expect."""

import pytest
import torch

from deployments.engine.cost import Curve, StageCost
from deployments.engine.device_step import rehearse
from deployments.engine.prompts import PromptText
from deployments.engine.simulated import (
    SimulatedDecoder,
    SimulatedSteps,
    SimulatedTextEncoder,
    SimulatedUNet,
)

NOTHING = Curve(1e-9, 1, 0.0)


def test_a_step_takes_what_its_rows_cost() -> None:
    slept: list[float] = []
    curve = Curve(0.04, 2, 0.01)
    steps = SimulatedSteps(StageCost((((16, 24), curve),)), slept.append)
    for rows in (1, 4, 8):
        rehearse(SimulatedUNet({"in_channels": 4}), steps, (16, 24), rows)
    assert slept == [curve.seconds(rows) for rows in (1, 4, 8)]


@pytest.mark.parametrize("is_xl", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_embeddings_have_the_parts_of_real_ones(is_xl: bool, guided: bool) -> None:
    encoder = SimulatedTextEncoder(NOTHING, is_xl)
    text = PromptText("a red star", None, guided, deterministic=False)
    embeds = encoder.assemble(text, encoder.encode(encoder.texts(text)))
    assert (embeds.negative_prompt_embeds is not None) == guided
    assert (embeds.pooled_prompt_embeds is not None) == is_xl
    assert embeds.num_tokens == 5, "three words, a start and an end"


def test_pictures_are_grey_and_of_the_right_size() -> None:
    decoder = SimulatedDecoder(StageCost((((16, 24), NOTHING),)), scale_factor=8)
    [pixels] = decoder.decode([torch.zeros(4, 16, 24)])
    assert pixels.shape == (128, 192, 3)
    assert (pixels == 128).all()
