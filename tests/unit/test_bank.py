"""Adapters of any rows in one forward against diffusers with PEFT, one row at a time."""

import copy
import math
import warnings
from collections.abc import Mapping

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from deployments.engine.adapters import LowRank, Target, padded_rank, rank_buckets, targets_of
from deployments.engine.bank import AdapterBank, Block, Layout, RowAdapters, arrange
from tests import tiny_models

CPU = torch.device("cpu")
ROWS = 8
# The adapters of each row with their scales, by name.
MIXES: list[dict[str, float]] = [
    {},
    {"a": 1.0},
    {"b": 0.7},
    {"a": 0.5, "b": -0.3},
    {},
    {"c": 1.3, "a": 0.2, "b": 0.4},
    {"c": 1.0},
    {"a": 1.0},
]


def make_weights(
    targets: Mapping[str, Target], seed: int, rank: int, convolutions: bool
) -> dict[str, LowRank]:
    """Random factors of the transformers, or of all layers but the first and last."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, target in targets.items():
        if name.startswith(("conv_", "time_embedding", "add_embedding")):
            continue
        if not convolutions and (target.kernel or ".attentions." not in name):
            continue
        a = torch.randn(rank, target.width, generator=generator) / math.sqrt(target.width)
        b = 0.3 * torch.randn(target.num_outputs, rank, generator=generator) / math.sqrt(rank)
        weights[name] = LowRank(a, b)
    return weights


def as_kohya(weights: Mapping[str, LowRank], targets: Mapping[str, Target]) -> dict[str, torch.Tensor]:
    state = {}
    for name, factors in weights.items():
        key, target = f"lora_unet_{name.replace('.', '_')}", targets[name]
        down, up = factors.a, factors.b
        if target.kernel:
            down = down.reshape(-1, target.num_inputs, *target.kernel)
            up = up[:, :, None, None]
        state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"] = down, up
        state[f"{key}.alpha"] = torch.tensor(float(len(down)))
    return state


def call(unet: UNet2DConditionModel, rows: slice = slice(None)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(ROWS, 4, 16, 16, generator=generator)
    timesteps = torch.randint(0, 999, (ROWS,), generator=generator).float()
    embeds = torch.randn(ROWS, 77, unet.config.cross_attention_dim, generator=generator)
    added = None
    if unet.config.addition_embed_type == "text_time":
        pooled = torch.randn(ROWS, 32, generator=generator)[rows]
        added = {"text_embeds": pooled, "time_ids": torch.ones(ROWS, 6)[rows]}
    latents, embeds = latents.to(unet.dtype), embeds.to(unet.dtype)
    with torch.inference_mode():
        return unet(latents[rows], timesteps[rows], embeds[rows], added_cond_kwargs=added).sample


def alone_with_peft(
    pipeline: DiffusionPipeline, files: Mapping[str, dict[str, torch.Tensor]]
) -> torch.Tensor:
    """Each row by itself, with its adapters set in the pipeline."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, state in files.items():
            pipeline.load_lora_weights(dict(state), adapter_name=name)
        rows = []
        for row, mix in enumerate(MIXES):
            if mix:
                pipeline.enable_lora()
                pipeline.set_adapters(list(mix), list(mix.values()))
            else:
                pipeline.disable_lora()
            rows.append(call(pipeline.unet, slice(row, row + 1)))
    return torch.cat(rows)


def psnr_db(given: torch.Tensor, wanted: torch.Tensor) -> float:
    spread = float(wanted.max() - wanted.min())
    return 10 * math.log10(spread**2 / max(float((given - wanted).square().mean()), 1e-30))


def row_adapters(blocks: Mapping[str, Block], mixes: list[dict[str, float]]) -> list[RowAdapters]:
    return [RowAdapters(1, [(blocks[name], scale) for name, scale in mix.items()]) for mix in mixes]


@pytest.mark.parametrize("convolutions", [False, True], ids=["transformers", "convolutions"])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_each_row_equals_diffusers_with_peft(family: str, convolutions: bool) -> None:
    pipeline = tiny_models.build(family)
    unet = copy.deepcopy(pipeline.unet)
    targets = targets_of(unet)
    ranks = {"a": 4, "b": 8, "c": 128}
    weights = {
        name: make_weights(targets, seed, rank, convolutions and name != "c")
        for seed, (name, rank) in enumerate(ranks.items())
    }
    wanted = alone_with_peft(pipeline, {name: as_kohya(one, targets) for name, one in weights.items()})

    layout = Layout.of(targets)
    bank = AdapterBank(layout, 160, CPU, torch.float32)
    plain = call(unet)
    bank.attach(unet)
    blocks = {name: layout.pack(name, ranks[name], one, torch.float32) for name, one in weights.items()}
    scales = bank.load(row_adapters(blocks, MIXES), 160)
    with bank.scaled(scales.transformers, scales.others):
        mixed = call(unet)

    for row, mix in enumerate(MIXES):
        assert psnr_db(mixed[row], wanted[row]) >= 60, mix
        assert bool(mix) == (psnr_db(plain[row], wanted[row]) < 50), mix
    assert torch.equal(mixed[0], plain[0]), "a row without adapters has the bits of a plain forward"


class Adapted:
    """A tiny U-Net with a bank, and adapters of rank 16."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.unet = tiny_models.build("sd1").unet.to(dtype)
        targets = targets_of(self.unet)
        layout = Layout.of(targets)
        self.bank = AdapterBank(layout, 64, CPU, dtype)
        self.bank.attach(self.unet)
        self.blocks = {
            name: layout.pack(name, 16, make_weights(targets, seed, 16, convolutions=True), dtype)
            for seed, name in enumerate("abcd")
        }

    def run(self, mixes: list[dict[str, float]], rank: int = 64, in_order: bool = False) -> torch.Tensor:
        scales = self.bank.load(row_adapters(self.blocks, mixes), rank, in_order)
        with self.bank.scaled(scales.transformers, scales.others):
            return call(self.unet)


def test_the_bits_of_a_row_depend_neither_on_neighbours_nor_on_places() -> None:
    adapted = Adapted(torch.float32)
    alone: list[dict[str, float]] = [{"b": 0.7}, *[{}] * 7]
    first = adapted.run(alone)[0]
    crowded = adapted.run([{"b": 0.7}, {"a": 1.0}, {"c": -2.0, "d": 1.0}, *[{"a": 0.5}] * 5])[0]
    assert torch.equal(crowded, first)
    adapted.run([{"c": 1.0}, {"d": 1.0}, *[{"a": 1.0}] * 6], rank=48)  # takes the place of the others
    assert torch.equal(adapted.run([{"b": 0.7}, *[{"c": 1.0}] * 7])[0], first)


def test_in_order_the_bits_of_a_row_with_two_adapters_depend_on_nothing_that_was_there() -> None:
    both: list[dict[str, float]] = [{"a": 0.7, "b": 0.4}, *[{}] * 7]
    first = Adapted(torch.float32).run(both, in_order=True)[0]
    for before in ({"b": 1.0}, {"c": 1.0, "b": 1.0}, {"d": 1.0, "c": 1.0}):
        adapted = Adapted(torch.float32)
        adapted.run([before, *[{}] * 7])
        assert torch.equal(adapted.run(both, in_order=True)[0], first)


def test_what_lay_in_the_place_of_an_adapter_that_could_not_be_copied_is_gone() -> None:
    adapted = Adapted(torch.float32)
    mine: list[dict[str, float]] = [{"a": 1.0}, *[{}] * 7]
    expected = adapted.run(mine)[0]
    broken = Block("broken", torch.zeros(16, 3))
    with pytest.raises(RuntimeError):
        adapted.bank.load([RowAdapters(8, [(adapted.blocks["b"], 1.0), (broken, 1.0)])], 64, in_order=True)
    assert torch.equal(adapted.run(mine)[0], expected)


def test_one_rows_infinite_values_reach_no_other_row() -> None:
    adapted = Adapted(torch.float16)
    mixed = adapted.run([{"a": 60_000.0}, {"b": 0.7}, *[{}] * 6])
    without = adapted.run([{}, {"b": 0.7}, *[{}] * 6])
    assert not mixed[0].isfinite().all()
    assert torch.equal(mixed[1:], without[1:])


def test_the_same_adapter_may_have_other_scales_in_other_rows() -> None:
    adapted = Adapted(torch.float32)
    mixed = adapted.run([{"a": 1.0}, {"a": -0.5}, *[{}] * 6], rank=16)
    assert torch.equal(mixed[0], adapted.run([{"a": 1.0}, *[{}] * 7], rank=16)[0])
    assert torch.equal(mixed[1], adapted.run([{}, {"a": -0.5}, *[{}] * 6], rank=16)[1])


def test_values_beyond_the_precision_are_refused() -> None:
    layout = Layout.of({"layer": Target(2, 3)})
    factors = LowRank(torch.full((1, 2), 1e6), torch.ones(3, 1))
    assert len(layout.pack("one", 1, {"layer": factors}, torch.float32).rows) == 16
    with pytest.raises(OverflowError, match="float16"):
        layout.pack("one", 1, {"layer": factors}, torch.float16)


def test_one_graph_serves_all_adapters_and_scales() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(32, 5))
    targets = targets_of(module)
    layout = Layout.of(targets)
    bank = AdapterBank(layout, 32, CPU, torch.float32)
    bank.attach(module)
    blocks = {
        name: layout.pack(name, 16, make_weights(targets, seed, 16, convolutions=True), torch.float32)
        for seed, name in enumerate("ab")
    }
    pictures = torch.randn(2, 3, 4, 4)
    compilations = 0

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> object:
        nonlocal compilations
        compilations += 1
        return graph.forward

    compiled = torch.compile(module, backend=backend, fullgraph=True, dynamic=False)

    def run(mixes: list[dict[str, float]], rank: int) -> None:
        scales = bank.load(row_adapters(blocks, mixes), rank)
        with torch.inference_mode(), bank.scaled(scales.transformers, scales.others):
            assert torch.allclose(compiled(pictures), module(pictures), atol=1e-6)

    run([{"a": 1.0}, {}], 16)
    assert compilations == 1
    run([{}, {"b": 0.5}], 16)
    assert compilations == 1, "other adapters and scales"
    run([{}, {"b": 0.5}], 32)
    assert compilations == 2, "another rank"


def test_places() -> None:
    held = {"a": range(32), "b": range(32, 48)}
    assert arrange(held, {"b": 16}, 64) == {"b": range(32, 48)}, "what lies well stays"
    assert arrange(held, {"b": 16}, 16) == {"b": range(16)}, "it is moved into a smaller forward"
    assert arrange(held, {"b": 16, "c": 32}, 64) == {"b": range(32, 48), "c": range(32)}
    assert arrange({"b": range(16, 32)}, {"b": 16, "c": 48}, 64) == {"b": range(16), "c": range(16, 64)}


def test_ranks_are_padded() -> None:
    assert [padded_rank(rank) for rank in (1, 16, 17, 128)] == [16, 16, 32, 128]
    assert rank_buckets(128) == (16, 32, 64, 128)
    assert rank_buckets(100) == (16, 32, 64, 100)
    assert rank_buckets(0) == ()
