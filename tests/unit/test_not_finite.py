"""A part of the model that overflows gives an error and not a black picture."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deployments.engine.images import LatentDecoder
from deployments.engine.messages import DenoiseFailed
from deployments.engine.model_source import ModelSource, Placement
from deployments.engine.models import load_text_pipeline, load_unet, load_vae
from deployments.engine.prompt_text import ReadText
from deployments.engine.prompts import TextEncoder
from deployments.engine.stage_errors import Fault, StageError
from tests.conftest import LoadedModel

Folder = Callable[[str], Path]
CPU, HALF = Placement(device="cpu"), Placement(device="cpu", dtype="float16")


def is_failure(result: object, part: str) -> bool:
    return (
        isinstance(result, StageError)
        and result.fault is Fault.NOT_FINITE
        and f"The {part} gave values" in result.detail
    )


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_text_that_overflows_the_encoder_fails_alone(model_folder: Folder, name: str) -> None:
    pipeline = load_text_pipeline(ModelSource(str(model_folder(name))), CPU)
    [token] = pipeline.tokenizer("star", add_special_tokens=False).input_ids
    with torch.no_grad():
        pipeline.text_encoder.get_input_embeddings().weight[token] = torch.inf
    sound, overflown = TextEncoder(pipeline).encode([ReadText("a circle"), ReadText("a star")])
    assert not isinstance(sound, StageError)
    assert is_failure(overflown, "text encoder")


def test_latents_that_overflow_the_vae_fail_alone(model_folder: Folder) -> None:
    decoder = LatentDecoder(load_vae(ModelSource(str(model_folder("sd1"))), CPU))
    sound, overflown = decoder.decode([torch.zeros(4, 8, 8), torch.full((4, 8, 8), 1e30)])
    assert not isinstance(sound, StageError)
    assert is_failure(overflown, "VAE")


def test_a_unet_that_overflows_in_float16_fails_its_request(
    model_folder: Folder, load_model: Callable[..., LoadedModel]
) -> None:
    unet = load_unet(ModelSource(str(model_folder("sd1"))), HALF)
    with torch.no_grad():
        unet._module.conv_out.weight.fill_(6e4)
    engine = replace(load_model("sd1"), unet=unet).engine()
    engine.add(load_model("sd1").request("a", num_inference_steps=2))
    events = []
    while engine.num_requests:
        events += engine.step().events
    [failed] = events
    assert isinstance(failed, DenoiseFailed)
    assert failed.fault is Fault.NOT_FINITE
    assert "The U-Net gave values that are not numbers" in failed.reason
