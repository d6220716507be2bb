"""Images that start from pictures: diffusers' own, whatever the sampler, and alone as in any batch."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from deployments.engine import load_engine
from deployments.engine.fit_picture import fit_picture, join_mask, on_white
from deployments.engine.messages import DenoisedLatents, EncodedPicture, StepProgress
from deployments.engine.pictures import enlarged, enlarged_latents, laid_around, prepare_picture
from deployments.engine.samplers import SAMPLERS, SamplerTables, UnsupportedSamplerError
from deployments.engine.stage_errors import sound
from tests import tiny_models
from tests.conftest import LoadedModel, finish, finish_with_checkpoints
from tests.shapes import evaluate
from tests.unit.test_fidelity import MIN_PSNR_DB
from tests.unit.test_samplers import STABLE_DIFFUSION

Load = Callable[..., LoadedModel]
# The samplers of tests.tiny_models' schedulers.
SAMPLER_OF_PIPELINE = {"sd1": "PNDM", "sdxl": "Euler"}
PROMPT, NEGATIVE_PROMPT, STEPS = "a large red star on a blue background", "a green circle", 5


def picture(side: int) -> Image.Image:
    """A picture of coloured clouds."""
    colours = np.random.default_rng(0).random((8, 8, 3)) * 255
    return Image.fromarray(colours.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


def mask(side: int) -> Image.Image:
    """White on the right, with a grey corner that counts as white and one that does not."""
    pixels = np.zeros((side, side), np.uint8)
    pixels[side // 4 : 3 * side // 4, side // 3 :] = 255
    pixels[: side // 8, : side // 8] = 130
    pixels[-side // 8 :, : side // 8] = 120
    return Image.fromarray(pixels, "L")


def encoded(model: LoadedModel, *, masked: bool) -> EncodedPicture:
    side = 16 * model.info.scale_factor
    fitted = fit_picture(picture(side), mask(side) if masked else None, side, side)
    prepared = prepare_picture(fitted, side, side)
    [one] = sound(model.pictures.encode([prepared]))
    return one


def pipeline_of(model: LoadedModel, *, masked: bool) -> Any:
    """diffusers' pipeline for such images, with the parts of the text pipeline in the same folder."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(model.folder, dtype=torch.float32)
    if not model.info.needs_mask:
        kind = "Inpaint" if masked else "Img2Img"
        if isinstance(pipeline, diffusers.StableDiffusionXLPipeline):
            pipeline = getattr(diffusers, f"StableDiffusionXL{kind}Pipeline")(**pipeline.components)
        else:
            parts = pipeline.components | {"safety_checker": None, "requires_safety_checker": False}
            pipeline = getattr(diffusers, f"StableDiffusion{kind}Pipeline")(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("name", "masked", "strength"),
    [
        *(
            (name, False, one)
            for name, one in itertools.product(["shapes", "sd1", "sd2", "sdxl"], [0.3, 0.6, 1.0])
        ),
        *(
            (name, True, one)
            for name, one in itertools.product(["sd1", "sd2", "sdxl", *tiny_models.INPAINTING], [0.6, 1.0])
        ),
    ],
)
def test_all_samplers_in_one_batch_make_the_pipelines_pictures(
    load_model: Load, name: str, masked: bool, strength: float
) -> None:
    model = load_model(name)
    pipeline, side = pipeline_of(model, masked=masked), 16 * model.info.scale_factor
    engine = model.engine(max_rows=64, rows_per_forward=64)
    start = encoded(model, masked=masked)
    steps = 2 * STEPS if strength < 0.5 else STEPS
    for sampler in SAMPLERS:
        fields = {"negative_prompt": NEGATIVE_PROMPT, "num_inference_steps": steps, "strength": strength}
        engine.add(model.request(sampler, PROMPT, sampler=sampler, picture=start, **fields))
    latents = finish(engine)
    for sampler in SAMPLERS:
        pipeline.scheduler = model.tables.scheduler(sampler)
        more = {"mask_image": mask(side), "height": side, "width": side} if masked else {}
        expected = pipeline(
            PROMPT,
            image=picture(side),
            strength=strength,
            negative_prompt=NEGATIVE_PROMPT,
            num_inference_steps=steps,
            guidance_scale=5.0,
            eta=SAMPLERS[sampler].step_kwargs.get("eta", 0.0),
            generator=torch.Generator().manual_seed(7),
            output_type="np",
            **more,
        ).images[0]
        [pixels] = sound(model.decoder.decode([latents[sampler]]))
        assert evaluate.psnr_db(pixels, (expected * 255).round().astype(np.uint8)) >= MIN_PSNR_DB, sampler


def test_it_begins_where_diffusers_does() -> None:
    """50 * 0.58 is slightly less than 29."""
    tables = SamplerTables(STABLE_DIFFUSION)
    stock = diffusers.DDIMScheduler.from_config(STABLE_DIFFUSION)
    stock.set_timesteps(50)
    assert torch.equal(tables.table("DDIM", 50, strength=0.58).timesteps, stock.timesteps[-28:].float())
    assert tables.table("Heun", 10, strength=0.5).num_calls == 2 * 5 - 1
    with pytest.raises(UnsupportedSamplerError, match=r"strength 0\.04 at 20 steps leaves no step"):
        tables.table("DDIM", 20, strength=0.04)


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "Heun"])
def test_alone_in_any_batch_and_resumed_the_bytes_are_the_same(load_model: Load, sampler: str) -> None:
    """Of a prompt, of guidance that ends, of a picture, of a mask, and of a second pass."""
    model = load_model("sd1")
    fields = {"sampler": sampler, "num_inference_steps": 5, "deterministic": True}
    latents = enlarged_latents(torch.randn(4, 12, 12, generator=torch.Generator().manual_seed(0)), (16, 16))
    kinds = [
        model.request("text", PROMPT, **fields),
        model.request("ending", PROMPT, guidance_end=0.5, **fields),
        model.request("picture", PROMPT, picture=encoded(model, masked=False), strength=0.6, **fields),
        model.request("mask", PROMPT, picture=encoded(model, masked=True), strength=0.6, **fields),
        model.request("second", PROMPT, picture=latents, strength=0.6, **fields),
    ]
    for wanted in kinds:
        engine = model.engine(checkpoint_interval_s=0.0)
        engine.add(wanted)
        alone, checkpoints = finish_with_checkpoints(engine)
        assert len(checkpoints) == wanted.num_calls - 1
        for checkpoint in [None, *checkpoints]:
            engine = model.engine(max_rows=32, rows_per_forward=32)
            for other in kinds:
                engine.add(replace(other, resume_from=checkpoint if other is wanted else None))
            assert torch.equal(finish(engine)[wanted.request_id], alone), (wanted.request_id, checkpoint)


def test_what_the_mask_keeps_is_the_picture(load_model: Load) -> None:
    model = load_model("sd1")
    start = encoded(model, masked=True)
    assert start.mask is not None
    engine = model.engine()
    request = model.request("image", PROMPT, picture=start, strength=1.0, preview_steps=frozenset({2}))
    engine.add(request)
    drawn = torch.randn(1, *start.mean.shape, generator=torch.Generator().manual_seed(request.seed))[0]
    assert start.std is not None
    kept = (start.mask == 0).expand_as(drawn)
    seen: list[torch.Tensor] = []
    while engine.num_requests:
        for event in engine.step().events:
            match event:
                case StepProgress():
                    seen.append(event.preview_latents)
                case DenoisedLatents():
                    seen.append(event.latents)
    assert len(seen) == 2
    for latents in seen:
        torch.testing.assert_close(latents[kept], (start.mean + start.std * drawn)[kept])
        assert not torch.allclose(latents[~kept], (start.mean + start.std * drawn)[~kept])


def test_a_picture_stands_on_white() -> None:
    tall = Image.new("RGBA", (8, 16), (255, 0, 0, 0))
    tall.paste((0, 0, 255, 255), (0, 0, 8, 8))
    fitted = fit_picture(on_white(tall), None, 16, 8)
    pixels = prepare_picture(fitted, 16, 8).pixels
    assert pixels.shape == (3, 16, 8)
    assert pixels[:, 0, 0].tolist() == [-1, -1, 1], "blue is above"
    assert pixels[:, 15, 0].tolist() == [1, 1, 1], "what was transparent is white"


def test_a_script_starts_from_a_picture(load_model: Load) -> None:
    engine = load_engine(str(load_model("shapes").folder), device="cpu")
    engine.add(PROMPT, image=picture(100), strength=0.5, num_inference_steps=4, seed=7)
    engine.add(PROMPT, image=picture(100), mask_image=mask(64), strength=0.5, num_inference_steps=4, seed=7)
    whole, masked = engine.finish()
    assert whole.shape == masked.shape == (128, 128, 3)
    black = np.asarray(mask(128)) == 0
    assert evaluate.psnr_db(masked[black], np.asarray(picture(128))[black]) > evaluate.psnr_db(
        whole[black], np.asarray(picture(128))[black]
    )


@pytest.mark.parametrize("name", ["sd1", "sdxl", *tiny_models.INPAINTING])
def test_a_crop_is_repainted_and_laid_into_the_picture(load_model: Load, name: str) -> None:
    """`padding_mask_crop` of diffusers: only the part around the mask is denoised, larger than it was."""
    model = load_model(name)
    pipeline, side = pipeline_of(model, masked=True), 16 * model.info.scale_factor
    wide = picture(3 * side).resize((3 * side, 2 * side))
    small = Image.new("L", wide.size)
    small.paste(255, (side, side, side + 14, side + 10))
    expected = pipeline(
        PROMPT,
        image=wide,
        mask_image=small,
        padding_mask_crop=4,
        height=side,
        width=side,
        strength=0.8,
        num_inference_steps=5,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    crop = VaeImageProcessor.get_crop_region(small, side, side, pad=4)
    start = replace(join_mask(wide, small), crop=crop)
    [encoded_crop] = sound(model.pictures.encode([prepare_picture(start, side, side)]))
    engine = model.engine()
    stock = SAMPLER_OF_PIPELINE[name.removesuffix("-inpainting")]
    engine.add(
        model.request(
            "image", PROMPT, picture=encoded_crop, strength=0.8, sampler=stock, num_inference_steps=5
        )
    )
    [pixels] = sound(model.decoder.decode([finish(engine)["image"]]))
    whole = laid_around(pixels, start)
    assert whole.shape == (2 * side, 3 * side, 3)
    assert evaluate.psnr_db(whole, np.asarray(expected)) >= MIN_PSNR_DB
    far = np.abs(whole.astype(int) - np.asarray(wide)).max(axis=-1)
    far[side : side + 10, side : side + 14] = 0
    assert far.max() <= 1, "the rest is the picture"


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_a_second_pass_is_image_to_image_of_the_first(load_model: Load, name: str, upscaler: str) -> None:
    model = load_model(name)
    side = 16 * model.info.scale_factor
    larger = 24 * model.info.scale_factor
    sampler = "Euler a"
    text = diffusers.DiffusionPipeline.from_pretrained(model.folder, dtype=torch.float32)
    text.set_progress_bar_config(disable=True)
    second = pipeline_of(model, masked=False)
    text.scheduler = model.tables.scheduler(sampler)
    common = {"num_inference_steps": 5, "guidance_scale": 5.0}
    first = text(
        PROMPT,
        height=side,
        width=side,
        output_type="latent" if upscaler == "latent" else "pil",
        generator=torch.Generator().manual_seed(7),
        **common,
    ).images
    if upscaler == "latent":
        start = torch.nn.functional.interpolate(first, size=(24, 24), mode="bicubic")
    else:
        start = first[0].resize((larger, larger), Image.Resampling.LANCZOS)
    second.scheduler = model.tables.scheduler(sampler)
    expected = second(
        PROMPT, image=start, strength=0.6, generator=torch.Generator().manual_seed(7), **common
    ).images[0]

    engine = model.engine()
    engine.add(model.request("first", PROMPT, sampler=sampler, num_inference_steps=5))
    latents = finish(engine)["first"]
    if upscaler == "latent":
        encoded_start = enlarged_latents(latents, (24, 24))
    else:
        [pixels] = sound(model.decoder.decode([latents]))
        prepared = prepare_picture(enlarged(pixels, larger, larger), larger, larger)
        [encoded_start] = sound(model.pictures.encode([prepared]))
    engine.add(
        model.request(
            "second",
            PROMPT,
            sampler=sampler,
            num_inference_steps=5,
            height=larger,
            width=larger,
            strength=0.6,
            picture=encoded_start,
        )
    )
    [made] = sound(model.decoder.decode([finish(engine)["second"]]))
    assert evaluate.psnr_db(made, np.asarray(expected)) >= MIN_PSNR_DB
