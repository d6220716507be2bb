"""Textual inversions: words from files, encoded as diffusers does, and nothing else changes a bit."""

import logging
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from deployments.engine.prompt_text import AS_DIFFUSERS, Reading, ReadText
from deployments.engine.prompts import TextEncoder
from deployments.engine.stage_errors import sound
from serve.config.app import AppConfig
from serve.config.schema import ConfigError

WIDTH = 32
A1111 = Reading("a1111", max_chunks=3)


def vectors(count: int, seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def pipeline_of(folder: Path) -> diffusers.DiffusionPipeline:
    return diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)


def encode(encoder: TextEncoder, text: str, reading: Reading = AS_DIFFUSERS) -> torch.Tensor:
    [encoded] = sound(encoder.encode([ReadText(text, reading)]))
    return encoded.embeds


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A1111's and diffusers' forms, of one and of three tokens; and files that do not fit."""
    folder = tmp_path / "words"
    folder.mkdir()
    save_file({"emb_params": vectors(3)}, folder / "easy-neg.safetensors")
    save_file({"<style>": vectors(1, 1)}, folder / "style.safetensors")
    save_file({"emb_params": vectors(1, 2, 48)}, folder / "of another model.safetensors")
    save_file({"emb_params": vectors(1) * float("nan")}, folder / "broken.safetensors")
    save_file({"a": vectors(1), "b": vectors(1)}, folder / "two.safetensors")
    (folder / "cut.safetensors").write_bytes(b"\x00" * 10)
    (folder / "pickle.pt").write_bytes(b"\x80")
    return folder


def test_words_are_diffusers(
    model_folder: Callable[[str], Path], words: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = model_folder("sd1")
    with caplog.at_level(logging.WARNING):
        ours = TextEncoder(pipeline_of(folder), words)
    told = {record.getMessage().split("/")[-1].split(".safetensors")[0] for record in caplog.records}
    assert told == {"of another model", "broken", "two", "cut"}
    stock = pipeline_of(folder)
    stock.load_textual_inversion(words, weight_name="easy-neg.safetensors", token="<easy-neg>")
    stock.load_textual_inversion(words, weight_name="style.safetensors", token="<style>")
    for text in ("a <style> star", "<easy-neg>", "<easy-neg>, a <style> <style> star", "a star"):
        with torch.inference_mode():
            expected = stock.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)[0][0]
        assert torch.equal(encode(ours, text), expected), text


def test_a1111s_syntax_names_them_as_words(model_folder: Callable[[str], Path], words: Path) -> None:
    ours, plain = (
        TextEncoder(pipeline_of(model_folder("sd1")), words),
        TextEncoder(pipeline_of(model_folder("sd1"))),
    )
    assert torch.equal(encode(ours, "a style star", A1111), encode(ours, "a <style> star")[:77])
    assert torch.equal(encode(ours, "easy-neg", A1111), encode(ours, "<easy-neg>"))
    weighted = encode(ours, "a (style:1.5) star", A1111)
    torch.testing.assert_close(weighted[2], 1.5 * encode(ours, "a style star", A1111)[2])
    for text in ("restyled stylish", "a star", "(a:1.2) star"):
        assert torch.equal(encode(ours, text, A1111), encode(plain, text, A1111)), "no other text changes"
    assert torch.equal(encode(ours, "a style star"), encode(plain, "a style star"))


def test_a_word_is_not_torn_apart(model_folder: Callable[[str], Path], words: Path) -> None:
    """74 tokens and a word of three: all of it goes into the next chunk."""
    ours = TextEncoder(pipeline_of(model_folder("sd1")), words)
    long = encode(ours, "star " * 74 + "easy-neg", A1111)
    assert torch.equal(long[:77], encode(ours, "star " * 74))
    assert torch.equal(long[77:], encode(ours, "<easy-neg>"))


def test_sdxl_has_vectors_for_both_encoders(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    save_file({"clip_l": vectors(2), "clip_g": vectors(2, 1)}, tmp_path / "style.safetensors")
    save_file({"clip_l": vectors(2), "clip_g": vectors(1)}, tmp_path / "unlike.safetensors")
    save_file({"emb_params": vectors(1)}, tmp_path / "of one.safetensors")
    folder = model_folder("sdxl")
    ours, plain = TextEncoder(pipeline_of(folder), tmp_path), TextEncoder(pipeline_of(folder))
    [word] = sound(ours.encode([ReadText("a <style> star")]))
    [other] = sound(ours.encode([ReadText("a red star")]))
    [stock] = sound(plain.encode([ReadText("a red star")]))
    assert torch.equal(other.embeds, stock.embeds)
    assert torch.equal(other.pooled, stock.pooled)
    assert not torch.equal(word.pooled, stock.pooled)
    encoder = ours._pipeline.text_encoder_2
    tokenizer = ours._pipeline.tokenizer_2
    first = len(tokenizer)
    ids = [tokenizer.bos_token_id, 320, first, first + 1, 583, tokenizer.eos_token_id]
    ids += [tokenizer.pad_token_id] * (77 - len(ids))
    with torch.inference_mode():
        last = encoder(torch.tensor([ids])).last_hidden_state[0, 5]
        expected = encoder.text_projection(last)
    torch.testing.assert_close(word.pooled, expected)


def test_a_folder_that_is_not_there_is_named() -> None:
    config = AppConfig.model_validate({"model": {"embeddings_folder": "nowhere"}})
    with pytest.raises(ConfigError, match=r"model\.embeddings_folder: .*nowhere' is no folder"):
        config.model.source()
