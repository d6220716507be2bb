"""Texts with weights and of any length: as diffusers where they fit, and beside other rows as alone."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from deployments.engine.messages import PromptEmbeds, TokenCount
from deployments.engine.prompt_text import AS_DIFFUSERS, PromptText, Reading, ReadText
from deployments.engine.stage_errors import sound
from tests.conftest import LoadedModel, finish, finish_with_checkpoints

Load = Callable[..., LoadedModel]
FAMILIES = ["shapes", "sd1", "sd2", "sdxl"]
CHUNKS = Reading(max_chunks=3)
WEIGHTS = Reading("a1111", max_chunks=3)
FITTING = ["a large red star on a blue background", "", "star " * 75, "a red star, a (blue) circle."]
LONG = ", ".join(["a large red star"] * 30)  # 149 tokens and a comma between each five


def encode(model: LoadedModel, text: str, reading: Reading) -> torch.Tensor:
    [encoded] = sound(model.encoder.encode([ReadText(text, reading)]))
    return encoded.embeds


@pytest.mark.parametrize("name", FAMILIES)
def test_what_fits_has_the_bits_of_diffusers(load_model: Load, name: str) -> None:
    model = load_model(name)
    for text in FITTING:
        [stock] = sound(model.encoder.encode([ReadText(text)]))
        [chunked] = sound(model.encoder.encode([ReadText(text, CHUNKS)]))
        assert torch.equal(chunked.embeds, stock.embeds), text
        assert torch.equal(chunked.pooled, stock.pooled), text
        assert chunked.tokens == stock.tokens, text


@pytest.mark.parametrize("clip_skip", [1, 2])
@pytest.mark.parametrize("name", ["shapes", "sd1", "sdxl"])
def test_skipped_layers_are_diffusers(load_model: Load, name: str, clip_skip: int) -> None:
    model = load_model(name)
    clip_skip = min(clip_skip, model.info.max_clip_skip)
    text = "a red star"
    encoder = model.encoder._pipeline.text_encoder
    tokens = model.encoder._pipeline.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt")
    with torch.inference_mode():
        layers = encoder(tokens.input_ids, output_hidden_states=True).hidden_states
        if name == "sdxl":
            expected = layers[-2 - clip_skip]
        else:
            expected = getattr(encoder, "text_model", encoder).final_layer_norm(layers[-1 - clip_skip])
    embeds = encode(model, text, replace(AS_DIFFUSERS, clip_skip=clip_skip))
    assert torch.equal(embeds[:, : expected.shape[-1]], expected[0])
    assert not torch.equal(embeds, encode(model, text, AS_DIFFUSERS))


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_layers_are_skipped_for_the_prompt_alone(load_model: Load, name: str) -> None:
    model = load_model(name)
    pipeline = model.encoder._pipeline
    if name == "sd1" and not hasattr(pipeline.text_encoder, "text_model"):
        pytest.skip("this diffusers cannot skip layers with this transformers")
    with torch.inference_mode():
        expected = pipeline.encode_prompt(
            "a star",
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt="a circle",
            clip_skip=1,
        )
    ours = embeds(model, "a star", "a circle", Reading(clip_skip=1))
    assert ours.negative_prompt_embeds is not None
    assert torch.equal(ours.prompt_embeds, expected[0][0])
    assert torch.equal(ours.negative_prompt_embeds, expected[1][0])


def test_weights_multiply_and_the_mean_stays(load_model: Load) -> None:
    """Random weights have a mean of nothing, and SDXL's is left as it becomes."""
    for name, restores in (("shapes", True), ("sd1", False), ("sdxl", False)):
        model = load_model(name)
        plain = encode(model, "a red star", AS_DIFFUSERS)
        expected = plain.clone()
        expected[2] *= 1.5
        if restores:
            expected *= plain.mean() / expected.mean()
        torch.testing.assert_close(encode(model, "a (red:1.5) star", WEIGHTS), expected)


def test_a_long_text_is_divided_at_commas_and_at_breaks(load_model: Load) -> None:
    model = load_model("sd1")
    [long] = sound(model.encoder.encode([ReadText(LONG, CHUNKS)]))
    assert (len(long.embeds), long.tokens) == (154, TokenCount(151, 151))
    half = ", ".join(["a large red star"] * 15)
    assert torch.equal(long.embeds[:77], encode(model, f"{half},", AS_DIFFUSERS))
    assert torch.equal(long.embeds[77:], encode(model, half, AS_DIFFUSERS))
    words = "star " * 160
    [cut] = sound(model.encoder.encode([ReadText(words, Reading(max_chunks=2))]))
    assert (len(cut.embeds), cut.tokens) == (154, TokenCount(162, 152))
    one = Reading("a1111")
    [first] = sound(model.encoder.encode([ReadText(LONG, one)]))
    assert torch.equal(first.embeds, encode(model, LONG, AS_DIFFUSERS)), "the last chunk is filled"
    assert first.tokens == TokenCount(151, 77)
    [half] = sound(model.encoder.encode([ReadText("a star BREAK a circle BREAK", one)]))
    assert (len(half.embeds), half.tokens) == (77, TokenCount(6, 4)), "empty chunks are left out"
    broken = encode(model, "a red star BREAK a blue circle", WEIGHTS)
    assert torch.equal(broken[:77], encode(model, "a red star", AS_DIFFUSERS))
    assert torch.equal(broken[77:], encode(model, "a blue circle", AS_DIFFUSERS))


def test_texts_of_all_kinds_are_encoded_in_one_call(load_model: Load) -> None:
    model = load_model("sdxl")
    texts = [ReadText("a star"), ReadText(LONG, CHUNKS), ReadText("(a:1.2) star", WEIGHTS), ReadText(LONG)]
    together = sound(model.encoder.encode(texts))
    for text, encoded in zip(texts, together, strict=True):
        [alone] = sound(model.encoder.encode([text]))
        torch.testing.assert_close(encoded.embeds, alone.embeds)
        torch.testing.assert_close(encoded.pooled, alone.pooled)


def embeds(model: LoadedModel, prompt: str, negative_prompt: str | None, reading: Reading) -> PromptEmbeds:
    text = PromptText(prompt, negative_prompt, True, True, reading)
    return model.encoder.assemble(
        text, [one for part in model.encoder.texts(text) for one in sound(model.encoder.encode([part]))]
    )


@pytest.mark.parametrize("name", ["shapes", "sdxl"])
def test_long_prompts_share_forwards_with_short_ones(load_model: Load, name: str) -> None:
    """One, two and three chunks, and a shorter negative prompt: repeated to six chunks in one forward."""
    model = load_model(name)
    requests = [
        replace(model.request(f"{chunks}"), embeds=embeds(model, prompt, "a circle", CHUNKS))
        for chunks, prompt in enumerate(["a red star", LONG, LONG + ", " + LONG])
    ]
    assert [request.embeds.common_length for request in requests] == [77, 154, 231]
    engine = model.engine()
    for request in requests:
        engine.add(request)
    together = finish(engine)
    for request in requests:
        engine = model.engine()
        engine.add(request)
        [alone] = finish(engine).values()
        torch.testing.assert_close(together[request.request_id], alone, rtol=1e-3, atol=1e-3)


def test_deterministic_bytes_do_not_depend_on_how_long_others_are(load_model: Load) -> None:
    model = load_model("sd1")
    fields: dict[str, Any] = {"deterministic": True, "sampler": "Euler a"}
    kinds = [
        replace(model.request(f"{chunks}", **fields), embeds=embeds(model, prompt, None, CHUNKS))
        for chunks, prompt in enumerate(["a red star", LONG, LONG + ", " + LONG])
    ]
    for wanted in kinds:
        engine = model.engine(checkpoint_interval_s=0.0)
        engine.add(wanted)
        alone, checkpoints = finish_with_checkpoints(engine)
        for checkpoint in (None, checkpoints[2]):
            engine = model.engine()
            for other in kinds:
                engine.add(replace(other, resume_from=checkpoint if other is wanted else None))
            assert torch.equal(finish(engine)[wanted.request_id], alone)


def test_the_stock_pipeline_takes_our_embeddings(load_model: Load) -> None:
    """So that a picture can be made again without Midstep."""
    model = load_model("sd1")
    ours = embeds(model, "a (red:1.3) star", "", WEIGHTS)
    assert ours.negative_prompt_embeds is not None
    pipeline = diffusers.DiffusionPipeline.from_pretrained(model.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = model.tables.scheduler("DPM++ 2M")
    side = 16 * model.info.scale_factor
    expected = pipeline(
        prompt_embeds=ours.prompt_embeds[None],
        negative_prompt_embeds=ours.negative_prompt_embeds[None],
        height=side,
        width=side,
        num_inference_steps=6,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images[0]
    engine = model.engine()
    engine.add(replace(model.request("image"), embeds=ours))
    [latents] = finish(engine).values()
    assert float((latents - expected).abs().max()) < 1e-3 * float(expected.abs().max())
    assert math.isfinite(float(latents.mean()))
