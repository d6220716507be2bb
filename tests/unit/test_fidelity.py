"""The engine's pictures against those of diffusers' own pipelines with the same seed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from deployments.engine.samplers import SAMPLERS
from tests.conftest import LoadedModel, finish
from tests.shapes import evaluate

Load = Callable[..., LoadedModel]
MIN_PSNR_DB = 50


def pipeline_picture(folder: Path, model: LoadedModel, sampler: str, **arguments: object) -> np.ndarray:
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = model.tables.scheduler(sampler)
    size = 16 * model.info.scale_factor
    eta = SAMPLERS[sampler].step_kwargs.get("eta", 0.0)
    generator = torch.Generator().manual_seed(7)
    result = pipeline(height=size, width=size, eta=eta, generator=generator, output_type="np", **arguments)
    return (result.images[0] * 255).round().astype(np.uint8)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["shapes", "sd1", "sd2", "sdxl"])
def test_the_engines_picture_is_the_pipelines(load_model: Load, name: str, sampler: str) -> None:
    model = load_model(name)
    prompt, negative_prompt = "a large red star on a blue background", "a green circle"
    expected = pipeline_picture(
        model.folder,
        model,
        sampler,
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=6,
        guidance_scale=5.0,
    )
    engine = model.engine()
    engine.add(model.request("image", prompt, negative_prompt=negative_prompt, sampler=sampler))
    [latents] = finish(engine).values()
    [pixels] = model.decoder.decode([latents])
    assert evaluate.psnr_db(pixels, expected) >= MIN_PSNR_DB


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_without_a_negative_prompt_too(load_model: Load, name: str, guidance_scale: float) -> None:
    """SDXL uses zeros without a negative prompt, not the embeddings of an empty one."""
    model = load_model(name)
    expected = pipeline_picture(
        model.folder, model, "Euler", prompt="a star", num_inference_steps=6, guidance_scale=guidance_scale
    )
    engine = model.engine()
    engine.add(model.request("image", "a star", sampler="Euler", guidance_scale=guidance_scale))
    [latents] = finish(engine).values()
    [pixels] = model.decoder.decode([latents])
    assert evaluate.psnr_db(pixels, expected) >= MIN_PSNR_DB


@pytest.mark.parametrize("name", ["shapes", "sd1", "sdxl"])
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "Heun"])
def test_guidance_that_ends_early_is_diffusers_with_its_callback(
    load_model: Load, name: str, sampler: str
) -> None:
    """diffusers documents the callback as "dynamic classifier-free guidance"."""

    def unguided_after_half(pipeline: Any, index: int, _: object, inputs: dict[str, Any]) -> dict[str, Any]:
        if index + 1 == math.ceil(pipeline.num_timesteps / 2):
            pipeline._guidance_scale = 0.0
            for key, value in inputs.items():
                inputs[key] = value if key == "latents" else value.chunk(2)[-1]
        return inputs

    model = load_model(name)
    prompt, negative_prompt = "a large red star on a blue background", "a green circle"
    inputs = ["latents", "prompt_embeds"] + (["add_text_embeds", "add_time_ids"] if name == "sdxl" else [])
    expected = pipeline_picture(
        model.folder,
        model,
        sampler,
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=6,
        guidance_scale=5.0,
        callback_on_step_end=unguided_after_half,
        callback_on_step_end_tensor_inputs=inputs,
    )
    engine = model.engine()
    engine.add(
        model.request("half", prompt, negative_prompt=negative_prompt, sampler=sampler, guidance_end=0.5)
    )
    [latents] = finish(engine).values()
    [pixels] = model.decoder.decode([latents])
    assert evaluate.psnr_db(pixels, expected) >= MIN_PSNR_DB


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_rescaled_guidance_is_the_pipelines(load_model: Load, name: str) -> None:
    """Beside requests without it, which keep their bits; also where guidance ends before the last step."""
    model = load_model(name)
    expected = pipeline_picture(
        model.folder,
        model,
        "Euler",
        prompt="a star",
        num_inference_steps=6,
        guidance_scale=9.0,
        guidance_rescale=0.7,
    )
    fields: dict[str, Any] = {"sampler": "Euler", "guidance_scale": 9.0}
    plain = model.request("plain", "a star", **fields)
    engine = model.engine()
    engine.add(plain)
    alone = finish(engine)["plain"]
    engine = model.engine()
    engine.add(plain)
    engine.add(model.request("rescaled", "a star", guidance_rescale=0.7, **fields))
    engine.add(model.request("ends", "a star", guidance_rescale=0.7, guidance_end=0.5, **fields))
    engine.add(model.request("unguided", "a star", guidance_rescale=0.7, sampler="Euler", guidance_scale=1.0))
    latents = finish(engine)
    [pixels] = model.decoder.decode([latents["rescaled"]])
    assert evaluate.psnr_db(pixels, expected) >= MIN_PSNR_DB
    torch.testing.assert_close(latents["plain"], alone, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(latents["rescaled"], latents["plain"], atol=1e-2)
    assert not torch.allclose(latents["ends"], latents["rescaled"], atol=1e-2)
    assert torch.isfinite(latents["unguided"]).all()
