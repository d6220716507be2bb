"""Weights in fewer bits: which layers have them, what they compute, and that others do not change a row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchao.quantization import Float8Tensor

from deployments.engine import models
from deployments.engine.adapters import targets_of
from deployments.engine.bank import AdapterBank, Layout, RowAdapters
from deployments.engine.conditions import Conditions, random_conditions
from deployments.engine.device_step import EagerSteps
from deployments.engine.fingerprint import model_ref
from deployments.engine.model_source import ModelLoadError, ModelSource, Placement
from deployments.engine.models import UNet, load_unet, load_unet_module, place_unet, unet_bank
from deployments.engine.quantization import Int8Weight, fill, quantize
from deployments.engine.row_parts import RowParts
from deployments.engine.unet_loader import DeviceLoader
from tests import tiny_models
from tests.conftest import LoadedModel, finish
from tests.unit.test_bank import make_weights

CPU, INT8 = Placement(device="cpu"), Placement(device="cpu", quantization="int8")
TYPES = {"int8": Int8Weight, "fp8": Float8Tensor}


def quantized_layer(layer: nn.Linear, quantization: str) -> nn.Linear:
    module = nn.ModuleDict({"attentions": nn.ModuleList([layer])})
    quantize(nn.ModuleDict({"block": module}), quantization)
    assert isinstance(layer.weight, TYPES[quantization])
    return layer


def inputs_of(unet: UNet, rows: int) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
    generator = torch.Generator().manual_seed(rows)
    latents = torch.randn(rows, unet.shape.latent_channels, 16, 16, generator=generator)
    torch.manual_seed(rows)
    return latents, torch.full((rows,), 500.0), random_conditions(rows, (16, 16), unet.shape)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(((one - other).norm() / other.norm()).detach())


@pytest.mark.parametrize("quantization", TYPES)
@pytest.mark.parametrize("family", ["sd1", "sdxl", "shapes"])
def test_the_transformers_linear_layers_have_them_and_no_others(
    model_folder: Callable[[str], Path], family: str, quantization: str
) -> None:
    module = load_unet_module(ModelSource(str(model_folder(family))), torch.bfloat16)
    quantize(module, quantization)
    for name, layer in module.named_modules():
        wanted = isinstance(layer, nn.Linear) and ".attentions." in name
        assert isinstance(getattr(layer, "weight", None), TYPES[quantization]) == wanted, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 16, 17, 40])
def test_an_int8_layer_adds_up_whole_numbers(tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(64, 48).to(dtype), torch.randn(2, tokens, 64).to(dtype)
    exact = layer(inputs)
    quantized_layer(layer, "int8")
    scales = inputs.abs().amax(-1, keepdim=True).float() / 127
    whole = (inputs / scales).round().double() @ layer.weight.qdata.double().T
    expected = (whole * scales * layer.weight.scale.T).to(dtype) + layer.bias
    torch.testing.assert_close(layer(inputs), expected)
    assert distance(layer(inputs), exact) < 0.02


@pytest.mark.parametrize(("quantization", "most"), [("int8", 0.02), ("fp8", 0.05)])
def test_a_row_does_not_feel_how_large_others_are(quantization: str, most: float) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(64, 48).bfloat16(), torch.randn(3, 40, 64).bfloat16()
    exact = layer(inputs)
    quantized_layer(layer, quantization)
    outputs = layer(inputs)
    assert 0 < distance(outputs, exact) < most
    inputs[1:] *= 1000
    assert torch.equal(layer(inputs)[0], outputs[0])


@pytest.mark.parametrize("quantization", TYPES)
def test_zeros_give_the_bias(quantization: str) -> None:
    """SDXL's empty negative prompt is zeros."""
    layer, inputs = nn.Linear(64, 48).bfloat16(), torch.randn(2, 40, 64).bfloat16()
    layer.weight.data[3] = 0
    quantized_layer(layer, quantization)
    inputs[0, 7] = 0
    outputs = layer(inputs)
    assert torch.equal(outputs[0, 7], layer.bias)
    assert (outputs[:, :, 3] == layer.bias[3]).all()
    assert outputs.isfinite().all()


@pytest.mark.parametrize("quantization", TYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_in_its_row_alone(value: float, quantization: str) -> None:
    torch.manual_seed(0)
    layer = quantized_layer(nn.Linear(64, 48).bfloat16(), quantization)
    inputs = torch.randn(2, 40, 64).bfloat16()
    before = layer(inputs)
    inputs[1, 3, 5] = value
    after = layer(inputs)
    assert torch.equal(after[0], before[0])
    assert not after[1].isfinite().all()


@pytest.mark.parametrize("quantization", TYPES)
def test_other_values_are_rounded_into_the_same_memory(quantization: str) -> None:
    torch.manual_seed(0)
    layer, other = nn.Linear(64, 48).bfloat16(), nn.Linear(64, 48).bfloat16()
    weight = quantized_layer(layer, quantization).weight
    places = weight.qdata.data_ptr(), weight.scale.data_ptr()
    with torch.inference_mode():
        fill(weight, other.weight)
    expected = quantized_layer(other, quantization).weight
    assert torch.equal(weight.qdata.float(), expected.qdata.float())
    assert torch.equal(weight.scale, expected.scale)
    assert (weight.qdata.data_ptr(), weight.scale.data_ptr()) == places


def test_a_quantized_model_draws_nearly_as_before(load_model: Callable[..., LoadedModel]) -> None:
    def drawn(placement: Placement) -> torch.Tensor:
        model = load_model("shapes", placement)
        engine = model.engine()
        engine.add(model.request("one"))
        return finish(engine)["one"]

    assert 0 < distance(drawn(INT8), drawn(CPU)) < 0.02


def test_deterministic_requests_have_the_same_bits_beside_others(
    load_model: Callable[..., LoadedModel],
) -> None:
    model = load_model("shapes", INT8)
    mine = model.request("mine", deterministic=True)

    def drawn(*others: Any) -> torch.Tensor:
        engine = model.engine(EagerSteps(model.unet, 2))
        for request in (*others, mine):
            engine.add(request)
        return finish(engine)["mine"]

    others = [
        model.request(f"{seed}", "a white circle on a black background", seed=seed, deterministic=True)
        for seed in range(3)
    ]
    assert torch.equal(drawn(*others), drawn())


@torch.inference_mode()
def test_a_rows_bits_do_not_depend_on_its_place(load_model: Callable[..., LoadedModel]) -> None:
    unet = load_model("shapes", INT8).unet
    latents, timesteps, conditions = inputs_of(unet, 6)
    order = torch.arange(6).roll(3)
    parts = RowParts(unet, 2)
    reordered = parts(latents[order], timesteps[order], conditions.take(order))
    assert torch.equal(reordered, parts(latents, timesteps, conditions)[order])


@pytest.mark.parametrize("is_pickle", [False, True])
def test_a_model_is_loaded_into_anothers_memory(tmp_path: Path, is_pickle: bool) -> None:
    """From a file, or by way of a module where there is only a pickle."""
    sources = []
    for seed in (1, 2):
        tiny_models.build("sd1", seed).save_pretrained(tmp_path / f"{seed}")
        if is_pickle:
            tiny_models.use_pickle(tmp_path / f"{seed}", "unet")
        sources.append(ModelSource(str(tmp_path / f"{seed}"), allow_pickle=True))
    loader = DeviceLoader(INT8, (), 1)
    first = loader.load(model_ref(sources[0]), None)
    [weight, *_] = [one for one in first.unet._module.parameters() if isinstance(one, Int8Weight)]
    place, inputs = weight.qdata.data_ptr(), inputs_of(first.unet, 2)
    before = first.unet(*inputs)
    second = loader.load(model_ref(sources[1]), first)
    assert second is first
    assert torch.equal(second.unet(*inputs), load_unet(sources[1], INT8)(*inputs))
    assert not torch.equal(second.unet(*inputs), before)
    assert weight.qdata.data_ptr() == place


def test_adapters_are_added_to_quantized_layers(model_folder: Callable[[str], Path]) -> None:
    def predicted(placement: Placement, scale: float) -> torch.Tensor:
        module = load_unet_module(ModelSource(str(model_folder("shapes"))), torch.float32)
        targets = targets_of(module)
        layout = Layout.of(targets)
        weights = make_weights(targets, 1, 16, convolutions=True)
        bank: AdapterBank = unet_bank(module, placement, 16)
        unet = place_unet(module, placement, bank)
        latents, timesteps, conditions = inputs_of(unet, 2)
        with torch.inference_mode():
            block = layout.pack("one", 16, weights, torch.float32)
            scales = bank.load([RowAdapters(1), RowAdapters(1, [(block, scale)])], 16)
            given = Conditions(*conditions.tensors()[:4], scales.transformers, scales.others)
            return unet(latents, timesteps, given)

    quantized, exact = predicted(INT8, 1.0), predicted(CPU, 1.0)
    assert distance(exact[1], predicted(CPU, 0.0)[1]) > 0.1, "the adapter changes the second row"
    assert 0 < distance(quantized, exact) < 0.02
    assert torch.equal(quantized[0], predicted(INT8, 0.0)[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fp8_is_refused_where_there_is_none(model_folder: Callable[[str], Path], dtype: str) -> None:
    with pytest.raises(
        ModelLoadError,
        match=rf"^model\.quantization: fp8 needs bfloat16 on a CUDA .*this is the cpu in {dtype}\.",
    ):
        load_unet(ModelSource(str(model_folder("sd1"))), Placement("cpu", dtype, quantization="fp8"))


@pytest.mark.parametrize(("capability", "is_refused"), [((8, 6), True), ((8, 9), False), ((9, 0), False)])
def test_fp8_needs_a_newer_card(
    capability: tuple[int, int], is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Placement, "torch_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    module, placement = nn.Module(), Placement("cuda", "bfloat16", quantization="fp8")
    if is_refused:
        number = r"\.".join(map(str, capability))
        with pytest.raises(
            ModelLoadError, match=rf"capability 8\.9 or more; this is Some GPU of {number} in b"
        ):
            models._quantized(module, placement)
    else:
        assert models._quantized(module, placement) is fill
