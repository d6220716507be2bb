"""Adapters that a prompt names in A1111's syntax."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.prompt_adapters import PromptAdapter, adapters_in, without_adapters
from deployments.engine.prompt_text import Reading
from tests.generation_requests import generation_request


@pytest.mark.parametrize(
    ("tag", "unet_scale", "text_scale"),
    [
        ("<lora:x>", 1, 1),
        ("<lora:x:0.8>", 0.8, 0.8),
        ("<LoRA: x : -2 >", -2, -2),
        ("<lyco:x:0.8>", 0.8, 0.8),
        ("<lora:x:0.8:0.6>", 0.6, 0.8),
        ("<lora:x:unet=0.6>", 0.6, 1),
        ("<lora:x:te=0>", 0, 0),
        ("<lora:x:te=0:unet=0.6>", 0.6, 0),
        ("<lora:x:1e-1>", 0.1, 0.1),
    ],
)
def test_an_adapter_has_two_scales_as_in_a1111(tag: str, unet_scale: float, text_scale: float) -> None:
    text = f"a {tag} (star:1.2)"
    assert adapters_in(text) == [PromptAdapter("x", unet_scale, text_scale)]
    assert without_adapters(text) == "a  (star:1.2)"


def test_several_are_taken_in_order_and_what_is_no_tag_is_text() -> None:
    text = "<lora:a/b:1>a star<lora:c><lora:d <hypernet:e> lora:f"
    assert [one.name for one in adapters_in(text)] == ["a/b", "c"]
    assert without_adapters(text) == "a star<lora:d <hypernet:e> lora:f"


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("<lora:>", "names no adapter"),
        ("<lora: :1>", "names no adapter"),
        ("<lora:x:>", "'' is no number"),
        ("<lora:x:big>", "'big' is no number"),
        ("<lora:x:nan>", "'nan' is no number"),
        ("<lora:x:inf>", "'inf' is no number"),
        ("<lora:x:1:2:3>", "the scale in the text encoders and the one in the U-Net"),
        ("<lora:x:1:lbw=ALL>", "after the name there may be two numbers"),
        ("<lora:x:dyn=4>", "after the name there may be two numbers"),
    ],
)
def test_a_tag_that_cannot_be_read_is_named(tag: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        adapters_in(f"a star {tag}")
    assert repr(tag) in str(refusal.value)


@given(st.text(alphabet=st.sampled_from("<>lora:lyco=te unet.19-"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_tag_is_left_and_the_rest_stays(text: str) -> None:
    assert without_adapters(without_adapters(text)).count("<lora:x>") == 0
    assert without_adapters(f"{text.replace('<', '')}<lora:x:1>") == text.replace("<", "")


def test_text_encoders_do_not_see_the_tags() -> None:
    request = generation_request(prompt="a <lora:x:1>star", reading=Reading("a1111"))
    assert request.text.prompt == "a star"
    assert generation_request(prompt="a <lora:x:1>star").text.prompt == "a <lora:x:1>star"
