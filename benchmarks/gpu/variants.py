"""Other ways to run a step: eagerly, with channels first, with other attentions, with cuDNN's benchmark mode.

A way that cannot run here gives the reason instead of figures.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from diffusers.models import attention_processor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.bench import Bench, Figures, figures_or_reason
from benchmarks.random_models import RandomModel
from deployments.engine.device_step import EagerSteps, StepRunner

ROWS = (16, 2)

_Change = Callable[[RandomModel], AbstractContextManager[None]]
_MakeRunner = Callable[[RandomModel], StepRunner]


@contextmanager
def _channels_first(model: RandomModel) -> Iterator[None]:
    model.module.to(memory_format=torch.contiguous_format)
    try:
        yield
    finally:
        model.module.to(memory_format=torch.channels_last)


@contextmanager
def _xformers(model: RandomModel) -> Iterator[None]:
    usual = model.module.attn_processors
    model.module.set_attn_processor(attention_processor.XFormersAttnProcessor())
    try:
        yield
    finally:
        model.module.set_attn_processor(usual)


def _as_served(model: RandomModel) -> AbstractContextManager[None]:
    return nullcontext()


def _with_attention(backend: SDPBackend) -> _Change:
    return lambda model: sdpa_kernel(backend)


def _cudnn_benchmark(model: RandomModel) -> AbstractContextManager[None]:
    return torch.backends.cudnn.flags(enabled=True, benchmark=True)


def _eager(model: RandomModel) -> StepRunner:
    return EagerSteps(model.unet)


# What is changed while a step runner is made and runs, and how it is made.
VARIANTS: dict[str, tuple[_Change, _MakeRunner]] = {
    "captured": (_as_served, RandomModel.step_runner),
    "captured, channels first": (_channels_first, RandomModel.step_runner),
    "captured, cuDNN's attention": (_with_attention(SDPBackend.CUDNN_ATTENTION), RandomModel.step_runner),
    "captured, flash attention": (_with_attention(SDPBackend.FLASH_ATTENTION), RandomModel.step_runner),
    "captured, cudnn.benchmark": (_cudnn_benchmark, RandomModel.step_runner),
    "eager": (_as_served, _eager),
    "eager, channels first": (_channels_first, _eager),
    "captured, xformers": (_xformers, RandomModel.step_runner),
}


def figures(bench: Bench, family: str) -> Figures:
    """Seconds of a step by rows, for each variant."""
    model = RandomModel.build(bench.sized(family), bench.device, bench.dtype)
    for name, (changed, make_runner) in VARIANTS.items():
        measure = partial(_seconds, bench, model, changed, make_runner)
        yield name, figures_or_reason(measure)
        bench.release_memory()


def _seconds(
    bench: Bench, model: RandomModel, changed: _Change, make_runner: _MakeRunner
) -> dict[str, float]:
    with changed(model):
        run_step = make_runner(model)
        return {f"{rows} rows": bench.step_s(run_step, model.inputs(rows)) for rows in ROWS}
