"""CUDA: a deterministic image has the same bytes in every process, however its kernels came to be chosen."""

from pathlib import Path

import pytest
import torch

from benchmarks.random_models import RandomModel, capture_failed
from deployments.engine.device_step import CapturedSteps, EagerSteps
from deployments.engine.model_source import Placement
from deployments.engine.models import place_unet
from tests.conftest import finish
from tests.gpu.processes import elsewhere, forget_building

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _denoise(
    family: str, captured: bool, compile_cache: str | None, max_bytes: int | None
) -> tuple[torch.Tensor | None, int]:
    """The latents of a deterministic image, None if it did not fit, and the most bytes allocated for it."""
    model = RandomModel.build(family, torch.device("cuda"), torch.bfloat16)
    forget_building()
    if max_bytes is not None:
        torch.cuda.set_per_process_memory_fraction(max_bytes / torch.cuda.mem_get_info()[1])
    placement = Placement("cuda", "bfloat16", compile_cache=compile_cache)
    unet = place_unet(model.module, placement, model.unet.bank)
    run_step = CapturedSteps(unet, [model.shape], capture_failed) if captured else EagerSteps(unet)
    engine = model.engine(8, run_step)
    engine.add(model.request("image", 7, steps=4, deterministic=True))
    return finish(engine).get("image"), torch.cuda.max_memory_allocated()


def denoise(
    family: str, captured: bool = True, compile_cache: Path | None = None, max_bytes: int | None = None
) -> tuple[torch.Tensor | None, int]:
    """`_denoise` in a process of its own, because a process keeps the kernels that it has chosen."""
    cache = None if compile_cache is None else str(compile_cache)
    return elsewhere(_denoise, family, captured, cache, max_bytes)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_little_memory_gives_the_same_bytes_or_none(family: str) -> None:
    """cuDNN takes another algorithm if a workspace does not fit."""
    expected, most_bytes = denoise(family)
    assert expected is not None
    found = [denoise(family, max_bytes=int(share * most_bytes))[0] for share in (1.0, 0.98, 0.95, 0.9)]
    finished = [latents for latents in found if latents is not None]
    assert finished
    assert all(torch.equal(latents, expected) for latents in finished)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_eager_steps_give_the_bytes_of_captured_ones(family: str) -> None:
    (captured, _), (eager, _) = denoise(family), denoise(family, captured=False)
    assert captured is not None
    assert eager is not None
    assert torch.equal(captured, eager)


def test_compiling_anew_gives_the_same_bytes(tmp_path: Path) -> None:
    """Each time with an empty cache, so that everything is chosen again."""
    (first, _), (second, _) = (denoise("sd15", compile_cache=tmp_path / name) for name in ("first", "second"))
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
