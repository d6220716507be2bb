"""What a step costs by its rows, captured where there is CUDA, and how near it is to the device's peak."""

import json
from dataclasses import asdict
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.random_models import DEVICES, RandomModel
from deployments.engine.cost import fit_curve
from deployments.engine.device_step import EagerSteps, StepRunner

ROWS = (16, 8, 4, 2)  # the largest first: its memory is used again by the others' graphs


def figures(bench: Bench, family: str) -> Figures:
    yield "matrix_peak_tflops", bench.matrix_peak / 1e12
    model = RandomModel.build(bench.sized(family), bench.device, bench.dtype)
    flops = flops_of_row(model)
    yield "tflop_of_a_row", flops / 1e12
    run_step = model.step_runner()
    timings = {}
    for rows in ROWS:
        bench.forget_peak_memory()
        found = step_figures(bench, model, run_step, rows, flops)
        timings[rows] = found["seconds"]
        yield f"{rows} rows", found | bench.peak_memory()
    yield "curve", asdict(fit_curve(timings))
    modelled = json.loads((DEVICES / f"h200-{family}.json").read_text())
    yield "modelled H200", modelled["cost_model"]["forward"]["curves"]


def step_figures(
    bench: Bench, model: RandomModel, run_step: StepRunner, rows: int, flops: int
) -> dict[str, Any]:
    """flops: of a row"""
    seconds = bench.step_s(run_step, model.inputs(rows))
    return {"seconds": seconds, "share_of_peak": rows * flops / seconds / bench.matrix_peak}


@torch.inference_mode()
def flops_of_row(model: RandomModel) -> int:
    with FlopCounterMode(display=False) as counter:
        EagerSteps(model.unet).launch(model.inputs(1))
    return int(counter.get_total_flops())
