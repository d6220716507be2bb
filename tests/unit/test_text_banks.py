"""Adapters of text encoders against diffusers with PEFT."""

import warnings
from collections.abc import Mapping

import pytest
import torch

from deployments.engine.adapters import AdapterRef, AdapterUse, LowRank, targets_of
from deployments.engine.bank import Layout
from deployments.engine.prompt_chunks import EncodedText
from deployments.engine.prompt_text import AS_DIFFUSERS, Reading, ReadText
from deployments.engine.prompts import TextEncoder
from deployments.engine.text_banks import TextAdapters
from tests import tiny_models

RANK = 8
A1111 = Reading("a1111")
PREFIXES = {
    "sd1": {"text_encoder": "lora_te_"},
    "sd2": {"text_encoder": "lora_te_"},
    "sdxl": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
}


class Adapters:
    """Two adapters of a pipeline's text encoders, packed and as kohya writes them."""

    def __init__(self, family: str) -> None:
        pipeline = tiny_models.build(family)
        self.packed: dict[str, dict[str, object]] = {}
        self.files: dict[str, dict[str, torch.Tensor]] = {}
        for seed, name in enumerate("ab"):
            self.packed[name], self.files[name] = {}, {}
            for part, prefix in PREFIXES[family].items():
                encoder = getattr(pipeline, part)
                targets = {
                    one: target
                    for one, target in targets_of(encoder).items()
                    if one.endswith(("_proj", "fc1", "fc2")) and "layers" in one
                }
                weights = self._weights(targets, seed)
                layout = Layout.of(targets_of(encoder))
                self.packed[name][part] = layout.pack(name, RANK, weights, torch.float32)
                for one, factors in weights.items():
                    # Files always name the inner model, which one of transformers' two classes leaves out.
                    inner = one if one.startswith("text_model.") else f"text_model.{one}"
                    key = prefix + inner.replace(".", "_")
                    self.files[name][f"{key}.lora_down.weight"] = factors.a
                    self.files[name][f"{key}.lora_up.weight"] = factors.b
                    self.files[name][f"{key}.alpha"] = torch.tensor(float(RANK))

    def _weights(self, targets: Mapping[str, object], seed: int) -> dict[str, LowRank]:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: LowRank(
                torch.randn(RANK, target.width, generator=generator) / target.width**0.5,
                0.3 * torch.randn(target.num_outputs, RANK, generator=generator),
            )
            for name, target in targets.items()
        }

    @property
    def all(self) -> TextAdapters:
        return self.packed


def uses(**scales: float) -> tuple[AdapterUse, ...]:
    return tuple(AdapterUse(AdapterRef(name, "", name, 0, RANK), scale) for name, scale in scales.items())


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_texts_equal_those_of_diffusers_with_peft(family: str) -> None:
    adapters = Adapters(family)
    encoder = TextEncoder(tiny_models.build(family), max_rank=32)
    texts = [
        ReadText("a red circle"),
        ReadText("a red circle", AS_DIFFUSERS, uses(a=1.0)),
        ReadText("a blue star", A1111, uses(b=-0.5)),
        ReadText("a red circle", AS_DIFFUSERS, uses(a=0.7, b=0.4)),
    ]
    found = encoder.encode(texts, adapters.all)
    again = encoder.encode(texts[:1], adapters.all)

    pipeline = tiny_models.build(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, state in adapters.files.items():
            pipeline.load_lora_weights(dict(state), adapter_name=name)
    reference = TextEncoder(pipeline)
    effects = []
    for text, one in zip(texts, found, strict=True):
        assert isinstance(one, EncodedText)
        if text.adapters:
            pipeline.enable_lora()
            pipeline.set_adapters(
                [use.adapter.name for use in text.adapters], [use.scale for use in text.adapters]
            )
        else:
            pipeline.disable_lora()
        [wanted] = reference.encode([ReadText(text.text, text.reading)])
        assert isinstance(wanted, EncodedText)
        assert torch.allclose(one.embeds, wanted.embeds, atol=1e-4)
        assert torch.allclose(one.pooled, wanted.pooled, atol=1e-4)
        effects.append(wanted.embeds)
    assert not torch.allclose(effects[0], effects[1], atol=0.1)
    assert torch.equal(again[0].embeds, found[0].embeds)
