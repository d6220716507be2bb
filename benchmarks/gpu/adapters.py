"""What adapters cost by their rank, and whether a row's bits depend on their place and neighbours."""

import hashlib
from dataclasses import replace

import torch

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.random_models import RandomModel
from deployments.engine.adapters import rank_buckets
from deployments.engine.bank import Block, RowAdapters
from deployments.engine.device_step import StepRunner
from deployments.engine.step_inputs import StepInputs

MAX_RANK = 128
_RANK = 16
_ROWS = 8
_COST_ROWS = 16


def figures(bench: Bench, family: str) -> Figures:
    model = RandomModel.build(bench.sized(family), bench.device, bench.dtype, MAX_RANK)
    run_step = model.step_runner()
    yield "bits", bits(model, run_step)
    # Products with zeros would take less power, and so less time.
    everywhere = _random_block(model, "everywhere", MAX_RANK)
    model.unet.bank.load([RowAdapters(1, [(everywhere, 1.0)])], MAX_RANK, in_order=True)
    without = 0.0
    for rank in (0, *rank_buckets(MAX_RANK)):
        seconds = bench.step_s(run_step, model.inputs(_COST_ROWS, rank))
        without = without or seconds
        yield f"rank {rank}", {"seconds": seconds, "times_without": seconds / without}


def bits(model: RandomModel, run_step: StepRunner) -> dict[str, object]:
    """Digests of the output of a row with an adapter, in a bucket of MAX_RANK.

    Its adapter lies in the bank at 0, 16 and 64, by its neighbours' ranks, and once its neighbours are others
    in the same place.
    """
    wanted = _random_block(model, "wanted", _RANK)
    neighbours = {
        "at 0": _random_block(model, "z", _RANK),  # digests decide the order in the bank
        "at 0, another neighbour": _random_block(model, "z", 4 * _RANK),
        "at 16": _random_block(model, "a", _RANK),
        "at 16, another neighbour": _random_block(model, "b", _RANK),
        "at 64": _random_block(model, "c", 4 * _RANK),
    }
    inputs = model.inputs(_ROWS, MAX_RANK)
    found = {name: _digest(model, run_step, inputs, wanted, block) for name, block in neighbours.items()}
    without = _digest(model, run_step, inputs, wanted, neighbours["at 0"], scale=0.0)
    return {
        "same_bits": len({*found.values()}) == 1,
        "adapter_acts": without not in found.values(),
        "digests": found,
    }


def _random_block(model: RandomModel, digest: str, rank: int) -> Block:
    """Random values for all layers; those outside of transformers are not computed."""
    unet = model.unet
    rows = torch.randn(rank, model.layout.width, device=unet.device, dtype=unet.shape.dtype)
    return Block(digest, 0.01 * rows)


@torch.inference_mode()
def _digest(
    model: RandomModel,
    run_step: StepRunner,
    inputs: StepInputs,
    wanted: Block,
    neighbour: Block,
    scale: float = 1.0,
) -> str:
    """The digest of the first of _ROWS rows, with the wanted adapter; the others have the neighbour."""
    rows = [RowAdapters(1, [(wanted, scale)]), RowAdapters(_ROWS - 1, [(neighbour, 0.7)])]
    scales = model.unet.bank.load(rows, MAX_RANK, in_order=True)
    conditions = replace(inputs.conditions, adapter_scales=scales.transformers, other_scales=scales.others)
    outputs = run_step.launch(replace(inputs, conditions=conditions))
    return hashlib.sha256(outputs[0].cpu().numpy().tobytes()).hexdigest()[:16]
