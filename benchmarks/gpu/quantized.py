"""What a step costs by its rows with its weights in fewer bits, and how far its result is from the exact one.

The weights are random, so the distance says only whether the arithmetic is right. What pictures lose is for
`deployments.quality_gate`, with real models.
"""

import torch

from benchmarks.gpu.bench import Bench, Figures, figures_or_reason
from benchmarks.gpu.steps import flops_of_row, step_figures
from benchmarks.random_models import RandomModel

ROWS = (16, 8, 2)
QUANTIZATIONS = ("fp8", "int8")


def figures(bench: Bench, family: str) -> Figures:
    for quantization in QUANTIZATIONS:
        yield quantization, figures_or_reason(lambda name=quantization: _figures(bench, family, name))  # type: ignore[misc]
        bench.release_memory()


def _figures(bench: Bench, family: str, quantization: str) -> dict[str, object]:
    from deployments.engine.quantization import quantize  # noqa: PLC0415 - torchao may not be installed

    model = RandomModel.build(bench.sized(family), bench.device, bench.dtype)
    flops, inputs = flops_of_row(model), model.inputs(ROWS[-1])
    with torch.inference_mode():
        exact = model.step_runner().launch(inputs)
    quantize(model.module, quantization)
    run_step = model.step_runner()  # after the weights have changed, as a graph has their addresses
    with torch.inference_mode():
        distance = (run_step.launch(inputs) - exact).norm() / exact.norm()
    found: dict[str, object] = {"distance": float(distance)}
    for rows in ROWS:
        bench.forget_peak_memory()
        found[f"{rows} rows"] = step_figures(bench, model, run_step, rows, flops) | bench.peak_memory()
    return found
