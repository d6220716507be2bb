"""Compiles a stock diffusers scheduler into a table by stepping it on unit vectors, in float64 on the CPU."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import signature
from itertools import pairwise
from typing import Any

import torch

from deployments.engine.sampler_table import (
    NUM_INPUTS,
    NUM_OUTPUTS,
    STATE_SLOTS,
    SamplerTable,
    advance,
)

MAX_REPLAY_ERROR = 1e-4

_Key = tuple[str, int]  # an attribute of a scheduler, and the index in it if it is a list
_LATENTS: _Key = ("latents", 0)
_NOISE_SEED = 0
# Coordinates of a probe. The latents, every saved tensor and the model's output get one each, in that order.
# The rest stay zero in every input, so that only noise shows there.
_PROBE_SHAPE = torch.Size((1, 16, 1, 1))


def compile_table(scheduler: Any, step_kwargs: Mapping[str, Any], begin: int | None = None) -> SamplerTable:
    """The table of a scheduler whose timesteps are set. step_kwargs: further arguments of its `step`

    begin: the index of the first timestep of an image that starts from a picture; None to start from noise.
        The table is compiled from there, because samplers that remember earlier calls then have none
    Raises ValueError if it is not linear or carries more state than the table keeps, ArithmeticError if its
    results are not numbers, and whatever the scheduler itself raises.
    """
    timesteps = scheduler.timesteps[begin:]
    if begin is not None and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    calls = _probe(copy.deepcopy(scheduler), timesteps, step_kwargs)
    table = _assemble(scheduler, timesteps, calls)
    if begin is not None:
        weights = _weights_of_noised(copy.deepcopy(scheduler), timesteps, step_kwargs)
        table = replace(table, start=weights[0], known=torch.tensor(weights[1:], dtype=torch.float64))
    missed_by = _replay_error(table, scheduler, timesteps, step_kwargs, calls)
    if math.isnan(missed_by):
        raise ArithmeticError(f"{type(scheduler).__name__} gives values that are not numbers")
    if missed_by >= MAX_REPLAY_ERROR:
        raise ValueError(
            f"{type(scheduler).__name__} is not linear with this model's configuration "
            f"(its table misses it by {missed_by:.1e})"
        )
    return table


@dataclass(frozen=True, slots=True)
class _Call:
    """One model call's step: outputs as weights over `inputs`, the model's output and noise."""

    input_scale: float
    inputs: tuple[_Key, ...]
    outputs: Mapping[_Key, torch.Tensor]
    noise_dtype: torch.dtype | None


def _saved(scheduler: Any) -> dict[_Key, torch.Tensor]:
    """A scheduler's state: every attribute or list item with the latents' shape."""
    return {
        (name, index): item
        for name, value in vars(scheduler).items()
        for index, item in enumerate(value if isinstance(value, list) else [value])
        if isinstance(item, torch.Tensor) and item.shape == _PROBE_SHAPE
    }


def _replace_saved(scheduler: Any, key: _Key, tensor: torch.Tensor) -> None:
    name, index = key
    if isinstance(getattr(scheduler, name), list):
        getattr(scheduler, name)[index] = tensor
    else:
        setattr(scheduler, name, tensor)


def _step(
    scheduler: Any,
    model_output: torch.Tensor,
    timestep: torch.Tensor,
    latents: torch.Tensor,
    generator: torch.Generator,
    step_kwargs: Mapping[str, Any],
) -> torch.Tensor:
    if "generator" in signature(scheduler.step).parameters:
        step_kwargs = {**step_kwargs, "generator": generator}
    previous: torch.Tensor = scheduler.step(
        model_output, timestep, latents, return_dict=False, **step_kwargs
    )[0]
    return previous


def _probe(scheduler: Any, timesteps: torch.Tensor, step_kwargs: Mapping[str, Any]) -> list[_Call]:
    """Steps a scheduler on unit vectors, so that a call's outputs are columns of weights.

    Before each call, the latents and everything that the scheduler saved are replaced by unit vectors. A
    second run on zeros, with the same noise, shows what noise adds.
    """
    calls = []
    for timestep in timesteps:
        saved = tuple(_saved(scheduler))
        inputs = (_LATENTS, *saved)
        units = torch.eye(len(inputs) + 1, _PROBE_SHAPE[1], dtype=torch.float64).reshape(-1, *_PROBE_SHAPE)
        input_scale = float(scheduler.scale_model_input(torch.ones_like(units[0]), timestep)[0, 0])

        def run(target: Any, vectors: torch.Tensor) -> tuple[dict[_Key, torch.Tensor], bool]:
            for key, vector in zip(saved, vectors[1:], strict=False):  # noqa: B023 - called in this iteration only
                _replace_saved(target, key, vector)
            generator = torch.Generator().manual_seed(_NOISE_SEED)
            untouched = generator.get_state()
            latents = _step(target, vectors[-1], timestep, vectors[0], generator, step_kwargs)  # noqa: B023
            drew = not torch.equal(untouched, generator.get_state())
            return {_LATENTS: latents, **_saved(target)}, drew

        noise_alone, _ = run(copy.deepcopy(scheduler), torch.zeros_like(units))
        results, drew_noise = run(scheduler, units)
        noise_dtype = _noise_dtype(noise_alone[_LATENTS]) if drew_noise else None
        outputs = {}
        for key, result in results.items():
            noise_weight = _noise_weight(noise_alone[key], noise_dtype) if noise_dtype else 0.0
            linear = (result - noise_alone[key]).double().flatten()[: len(inputs) + 1]
            outputs[key] = torch.cat([linear, torch.tensor([noise_weight], dtype=torch.float64)])
        calls.append(_Call(input_scale, inputs, outputs, noise_dtype))
    return calls


def _unit_noise(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    return torch.randn(_PROBE_SHAPE, generator=generator, dtype=dtype).double()


def _noise_weight(noisy: torch.Tensor, dtype: torch.dtype) -> float:
    noise = _unit_noise(dtype)
    return float((noisy * noise).sum() / (noise * noise).sum())


def _noise_dtype(noisy: torch.Tensor) -> torch.dtype:
    """The dtype in which a scheduler draws noise: the latents' or always float32. The streams differ."""
    misses = {
        dtype: float((noisy - _noise_weight(noisy, dtype) * _unit_noise(dtype)).abs().max())
        for dtype in (torch.float64, torch.float32)
    }
    return min(misses, key=lambda dtype: misses[dtype])


def _weights_of_noised(
    scheduler: Any, timesteps: torch.Tensor, step_kwargs: Mapping[str, Any]
) -> list[tuple[float, float]]:
    """The weights of (latents, noise) in latents with as much noise as there is before the first call and
    after each. Steps the scheduler, because some count where they are."""
    units = torch.eye(2, _PROBE_SHAPE[1], dtype=torch.float64).reshape(2, *_PROBE_SHAPE)
    nothing, generator = torch.zeros(_PROBE_SHAPE, dtype=torch.float64), torch.Generator()

    def weights(timestep: torch.Tensor) -> tuple[float, float]:
        noised = scheduler.add_noise(units[0], units[1], timestep.reshape(1)).flatten()
        return float(noised[0]), float(noised[1])

    found = [weights(timesteps[0])]
    for timestep, after in pairwise(timesteps):
        _step(scheduler, nothing, timestep, nothing, generator, step_kwargs)
        found.append(weights(after))
    return [*found, (1.0, 0.0)]


def _assemble(scheduler: Any, timesteps: torch.Tensor, calls: list[_Call]) -> SamplerTable:
    """Gives every value that is read later a slot of the state, and drops the rest."""
    weights = torch.zeros(len(calls), NUM_OUTPUTS, NUM_INPUTS, dtype=torch.float64)
    read_later: list[_Key] = []  # after the last call only the latents are needed
    for index, call in reversed(list(enumerate(calls))):
        wanted = [_LATENTS, *read_later]
        read = [
            column
            for column in range(1, len(call.inputs))
            if any(call.outputs[key][column] != 0 for key in wanted)
        ]
        if len(read) >= STATE_SLOTS:
            raise ValueError(
                f"{type(scheduler).__name__} carries {len(read)} tensors from step to step; "
                f"at most {STATE_SLOTS - 1} are kept"
            )
        columns = [0, *read, len(call.inputs), len(call.inputs) + 1]
        slots = [*range(len(read) + 1), STATE_SLOTS, STATE_SLOTS + 1]
        for output, key in enumerate(wanted):
            weights[index, output, slots] = call.outputs[key][columns]
        read_later = [call.inputs[column] for column in read]
    for index, (timestep, call) in enumerate(zip(timesteps, calls, strict=True)):
        on_input, on_output = _clean_estimate(scheduler, float(timestep))
        weights[index, STATE_SLOTS, 0] = on_input * call.input_scale
        weights[index, STATE_SLOTS, STATE_SLOTS] = on_output
    return SamplerTable(
        timesteps=timesteps.to(torch.float32),
        input_scales=torch.tensor([call.input_scale for call in calls], dtype=torch.float64),
        weights=weights,
        draws_noise=tuple(call.noise_dtype is not None for call in calls),
        initial_scale=float(scheduler.init_noise_sigma),
    )


def _clean_estimate(scheduler: Any, timestep: float) -> tuple[float, float]:
    """The weights of the model's input and output in its estimate of the clean latents."""
    below = int(timestep)
    above = min(below + 1, len(scheduler.alphas_cumprod) - 1)
    alpha_cumprod = float(
        torch.lerp(scheduler.alphas_cumprod[below], scheduler.alphas_cumprod[above], timestep - below)
    )
    alpha, sigma = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    estimates = {
        "epsilon": (1 / max(alpha, 1e-4), -sigma / max(alpha, 1e-4)),
        "v_prediction": (alpha, -sigma),
        "sample": (0.0, 1.0),
    }
    prediction_type = scheduler.config.prediction_type
    if prediction_type not in estimates:
        raise ValueError(f"prediction_type {prediction_type!r}; known: {', '.join(estimates)}")
    return estimates[prediction_type]


def _replay_error(
    table: SamplerTable,
    scheduler: Any,
    timesteps: torch.Tensor,
    step_kwargs: Mapping[str, Any],
    calls: list[_Call],
) -> float:
    """The table's largest error against the scheduler on a smooth model, relative to the largest latent."""

    def model(latents: torch.Tensor, timestep: float) -> torch.Tensor:
        return torch.sin(2 * latents + timestep / 300) + 0.5 * latents.roll(1, dims=1)

    stock = copy.deepcopy(scheduler)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    latents = (
        table.initial_scale * torch.randn(_PROBE_SHAPE, generator=torch.Generator().manual_seed(2)).double()
    )
    state = torch.zeros(1, STATE_SLOTS, *_PROBE_SHAPE[1:], dtype=torch.float64)
    state[:, 0] = latents
    for index, (timestep, call) in enumerate(zip(timesteps, calls, strict=True)):
        model_output = model(stock.scale_model_input(latents, timestep), float(timestep))
        latents = _step(stock, model_output, timestep, latents, generators[0], step_kwargs).double()

        noise = torch.zeros(_PROBE_SHAPE, dtype=torch.float64)
        if (dtype := call.noise_dtype) is not None:
            noise = torch.randn(_PROBE_SHAPE, generator=generators[1], dtype=dtype).double()
        model_output = model(call.input_scale * state[:, 0], float(timestep))
        inputs = torch.cat([state, model_output[:, None], noise[:, None]], dim=1)
        state = advance(table.weights[index : index + 1], inputs)[:, :STATE_SLOTS]
    return float((state[:, 0] - latents).abs().max() / latents.abs().max())
