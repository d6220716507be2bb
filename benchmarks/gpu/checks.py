"""Whether the engine's pictures are right on this device: as diffusers', and the same bits where promised.

Every check gives figures; tests/gpu says which are right.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, Figures
from benchmarks.gpu.worker import end_with_parent
from benchmarks.random_models import RandomModel
from deployments.engine.device_step import EagerSteps, StepRunner
from deployments.engine.messages import Checkpoint, DenoisedLatents

_STEPS = 4
_NUM_REQUESTS = 4


def figures(bench: Bench, family: str) -> Figures:
    family = bench.sized(family)
    with fingerprints_elsewhere(family, bench.device, bench.dtype) as elsewhere:
        model = RandomModel.build(family, bench.device, bench.dtype)
        run_step = model.step_runner()
        yield "captured against eager", captured_against_eager(model, run_step)
        here = fingerprints(model, run_step)
        yield "neighbours", {"same_bits": len({*here}) == 1, "fingerprints": here}
        yield "resumed", resumed_against_undisturbed(model, run_step)
        yield "fidelity in float32", fidelity(family, bench.device)
        there = elsewhere()
        yield "another process", {"same_bits": there == here, "fingerprints": there}


def difference(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """How far tensors of the same names are apart. max_difference: relative to the largest value"""
    pairs = [(found[name], expected[name]) for name in found.keys() | expected.keys()]
    return {
        "same_bits": all(torch.equal(one, other) for one, other in pairs),
        "max_difference": max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs),
    }


def fidelity(family: str, device: torch.device) -> dict[str, Any]:
    """Latents in float32 against those of diffusers' pipeline. family: of random_models"""
    model = RandomModel.build(family, device, torch.float32)
    requests = [model.request(str(seed), seed, _STEPS) for seed in range(2)]
    expected = model.run_pipeline(model.pipeline(), len(requests), _STEPS).cpu()
    found = model.denoise(requests, model.step_runner())
    return difference(found, {str(seed): latents for seed, latents in enumerate(expected)})


def captured_against_eager(model: RandomModel, run_step: StepRunner) -> dict[str, Any]:
    """Latents of `run_step` against those of eager steps.

    As requests finish, the graphs of 8, 4 and 2 rows take turns, three times over. If one of them left
    anything behind in their shared memory, it would show.
    """
    found: list[dict[str, torch.Tensor]] = []
    for runner in (run_step, EagerSteps(model.unet)):
        latents: dict[str, torch.Tensor] = {}
        for turn in range(3):
            seeds = [10 * turn + index for index in range(_NUM_REQUESTS)]
            requests = [model.request(str(seed), seed, 2 + seed % 10) for seed in seeds]
            latents |= model.denoise(requests, runner)
        found.append(latents)
    return difference(*found)


def fingerprints(model: RandomModel, run_step: StepRunner) -> list[str]:
    """Digests of a deterministic request's latents: alone, and in each place among other neighbours."""
    wanted = model.request("wanted", 7, _STEPS, deterministic=True)
    found = [model.denoise([wanted], run_step)]
    for place in range(_NUM_REQUESTS):
        seeds = [100 + 10 * place + index for index in range(_NUM_REQUESTS - 1)]
        requests = [model.request(str(seed), seed, _STEPS, deterministic=True) for seed in seeds]
        requests.insert(place, wanted)
        found.append(model.denoise(requests, run_step))
    return [hashlib.sha256(latents["wanted"].numpy().tobytes()).hexdigest()[:16] for latents in found]


def _fingerprints(family: str, device: torch.device, dtype: torch.dtype) -> list[str]:
    model = RandomModel.build(family, device, dtype)
    return fingerprints(model, model.step_runner())


@contextmanager
def fingerprints_elsewhere(
    family: str, device: torch.device, dtype: torch.dtype
) -> Iterator[Callable[[], list[str]]]:
    """Begins `fingerprints` in another process, of a model with the same weights. family: of random_models

    Gives a function that waits for them.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as process:
        yield process.submit(_fingerprints, family, device, dtype).result


def resumed_against_undisturbed(model: RandomModel, run_step: StepRunner) -> dict[str, Any]:
    """Latents of a deterministic request that goes on from each of its checkpoints."""
    request = model.request("wanted", 7, _STEPS, deterministic=True)
    engine = model.engine(2 * _NUM_REQUESTS, run_step, checkpoint_interval_s=0.0)
    engine.add(request)
    checkpoints, undisturbed = [], {}
    while engine.num_requests:
        for event in engine.step().events:
            match event:
                case Checkpoint(call=call):
                    checkpoints.append((str(call), event))
                case DenoisedLatents(latents=latents):
                    undisturbed["wanted"] = latents
    found = {
        call: model.denoise([replace(request, resume_from=checkpoint)], run_step)["wanted"]
        for call, checkpoint in checkpoints
    }
    return difference(found, dict.fromkeys(found, undisturbed["wanted"])) | {"checkpoints": len(found)}
