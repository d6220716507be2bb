"""What a compiled and captured step costs by its rows, and how long its first one takes."""

import torch

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.gpu.steps import flops_of_row, step_figures
from benchmarks.random_models import RandomModel
from deployments.engine.models import compile_module

ROWS = (16, 2)


def figures(bench: Bench, family: str) -> Figures:
    model = RandomModel.build(bench.sized(family), bench.device, bench.dtype)
    flops = flops_of_row(model)  # before it is compiled: dynamo never compiles what ran under a counter
    compile_module(model.module)
    run_step = model.step_runner()
    for rows in ROWS:
        inputs = model.inputs(rows)
        with torch.inference_mode():
            first_s = bench.once(lambda inputs=inputs: run_step.launch(inputs))  # type: ignore[misc]
        yield f"{rows} rows", step_figures(bench, model, run_step, rows, flops) | {"first_step_s": first_s}
