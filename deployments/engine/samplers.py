"""Samplers as tables: any diffusers scheduler, compiled into one small matrix per model call.

Every diffusers scheduler for this model family is linear in what it is given: the next latents and
whatever it saves for later are weighted sums of the current latents, what it saved before, the guided
model output and fresh noise, with weights that depend on the step alone. So no sampler mathematics is
written here. `compile_sampler` steps the stock scheduler on unit vectors, in float64 on the CPU, and
reads the weights off; `advance` applies them to requests that are at different rows of different tables
in one operation.

One row of a table acts on a request's state `[STATE_SLOTS, C, h, w]`, slot 0 being the latents and the
others what the scheduler saves (earlier model outputs, an earlier sample). With the inputs
`[state..., model output, noise]` stacked to `[STATE_SLOTS + 2, C, h, w]`, the row's matrix gives the
next state and, as one output more, the current estimate of the clean latents (for previews).
"""

import copy
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import signature
from itertools import islice
from typing import Any

import diffusers
import torch

STATE_SLOTS = 5
NUM_INPUTS = STATE_SLOTS + 2  # the state, the guided model output, fresh noise
NUM_OUTPUTS = STATE_SLOTS + 1  # the next state, the estimate of the clean latents
MAX_REPLAY_ERROR = 1e-4
MAX_CALLS_PER_STEP = 2  # of the model: Heun and KDPM2 take two for most steps


class UnsupportedSamplerError(ValueError):
    """The sampler cannot be had: unknown, not linear, or not for this number of steps."""


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """How a sampler's name maps to a diffusers scheduler: class, configuration, and what `step` is given."""

    scheduler: str
    config: Mapping[str, Any] = field(default_factory=dict)
    step_kwargs: Mapping[str, Any] = field(default_factory=dict)


# Latent models do not clip the estimate of x_0, as diffusers' own Stable Diffusion pipelines insist.
_UNCLIPPED = {"clip_sample": False, "thresholding": False}
_PLAIN_SIGMAS = {"use_karras_sigmas": False}
_DPM = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
_DPM_SDE = {"algorithm_type": "sde-dpmsolver++", "solver_type": "midpoint"}
_DEIS = {"solver_order": 2, "algorithm_type": "deis", "solver_type": "logrho"}

SAMPLERS: Mapping[str, SamplerSpec] = {
    "DDIM": SamplerSpec("DDIMScheduler", _UNCLIPPED),
    "DDIM eta 1": SamplerSpec("DDIMScheduler", _UNCLIPPED, {"eta": 1.0}),
    "DDPM": SamplerSpec("DDPMScheduler", _UNCLIPPED | {"variance_type": "fixed_small"}),
    "Euler": SamplerSpec("EulerDiscreteScheduler", _PLAIN_SIGMAS),
    "Euler a": SamplerSpec("EulerAncestralDiscreteScheduler"),
    "DPM++ 2M": SamplerSpec("DPMSolverMultistepScheduler", _DPM | _PLAIN_SIGMAS | {"solver_order": 2}),
    "DPM++ 2M Karras": SamplerSpec(
        "DPMSolverMultistepScheduler", _DPM | {"use_karras_sigmas": True, "solver_order": 2}
    ),
    "DPM++ 2M SDE": SamplerSpec(
        "DPMSolverMultistepScheduler", _DPM_SDE | _PLAIN_SIGMAS | {"solver_order": 2}
    ),
    "DPM++ 2M SDE Karras": SamplerSpec(
        "DPMSolverMultistepScheduler", _DPM_SDE | {"use_karras_sigmas": True, "solver_order": 2}
    ),
    "DPM++ 3M": SamplerSpec("DPMSolverMultistepScheduler", _DPM | _PLAIN_SIGMAS | {"solver_order": 3}),
    "DEIS": SamplerSpec("DEISMultistepScheduler", _DEIS | _PLAIN_SIGMAS),
    "UniPC": SamplerSpec(
        "UniPCMultistepScheduler", _PLAIN_SIGMAS | {"solver_order": 2, "solver_type": "bh2"}
    ),
    "UniPC 3": SamplerSpec(
        "UniPCMultistepScheduler", _PLAIN_SIGMAS | {"solver_order": 3, "solver_type": "bh2"}
    ),
    "LCM": SamplerSpec("LCMScheduler", _UNCLIPPED),
    "TCD": SamplerSpec("TCDScheduler", _UNCLIPPED, {"eta": 0.3}),
    "Heun": SamplerSpec("HeunDiscreteScheduler", _PLAIN_SIGMAS | {"clip_sample": False}),
    "KDPM2": SamplerSpec("KDPM2DiscreteScheduler", _PLAIN_SIGMAS),
    "PLMS": SamplerSpec("PNDMScheduler", {"skip_prk_steps": True}),
}

_ALIASES = {
    "euler ancestral": "Euler a",
    "dpm++ 2m sde k": "DPM++ 2M SDE Karras",
    "dpm2": "KDPM2",
    "dpm 2": "KDPM2",
    "pndm": "PLMS",
    "unipc order 2": "UniPC",
    "unipc order 3": "UniPC 3",
    "ddim eta": "DDIM eta 1",
}


def _plain(name: str) -> str:
    return "".join(name.lower().replace("_", " ").replace("-", " ").split())


_BY_PLAIN_NAME = {_plain(name): name for name in SAMPLERS} | {
    _plain(alias): name for alias, name in _ALIASES.items()
}


def canonical_sampler(name: str) -> str:
    """The key of SAMPLERS that a name means; case, spaces, `_` and `-` do not matter.

    Raises UnsupportedSamplerError, naming the samplers there are.
    """
    found = _BY_PLAIN_NAME.get(_plain(name))
    if found is None:
        raise UnsupportedSamplerError(f"unknown sampler {name!r}; known: {', '.join(SAMPLERS)}")
    return found


@dataclass(frozen=True, slots=True)
class SamplerTable:
    """A sampler at a number of steps, one row per model call (of which some samplers make two a step).

    timesteps: [rows] float32, as the model is given them
    input_scales: [rows] float64, what the latents are multiplied by on their way into the model
    weights: [rows, NUM_OUTPUTS, NUM_INPUTS] float64
    draws_noise: per row, whether a draw from the request's generator belongs to it
    initial_scale: what the first standard normal draw is multiplied by
    """

    timesteps: torch.Tensor
    input_scales: torch.Tensor
    weights: torch.Tensor
    draws_noise: tuple[bool, ...]
    initial_scale: float

    @property
    def num_rows(self) -> int:
        return len(self.draws_noise)

    def num_slots(self, row: int) -> int:
        """How many state slots, from the first on, the rows from `row` to the end read."""
        read = self.weights[row:, :, :STATE_SLOTS].ne(0).any(dim=0).any(dim=0)  # [STATE_SLOTS]
        return int(read.nonzero().max()) + 1


def advance(weights: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """One weighted sum per request.

    weights [B, NUM_OUTPUTS, NUM_INPUTS], inputs [B, NUM_INPUTS, C, h, w] -> [B, NUM_OUTPUTS, C, h, w].

    Written as products and sums over the inputs, in order, because these are elementwise: a request's bits
    then cannot depend on how many others are stepped with it, which no matrix product promises.
    """
    weights = weights[..., None, None, None]
    outputs = weights[:, :, 0] * inputs[:, None, 0]
    for index in range(1, inputs.shape[1]):
        outputs = outputs + weights[:, :, index] * inputs[:, None, index]
    return outputs


class SamplerTables:
    """The tables of one model's noise schedule, compiled when first asked for and kept.

    scheduler_config: the model's own scheduler configuration (beta schedule, prediction type, ...)
    """

    def __init__(self, scheduler_config: Mapping[str, Any]) -> None:
        self._scheduler_config = dict(scheduler_config)
        self._compile = lru_cache(maxsize=len(SAMPLERS) * 100)(self._compile_uncached)

    def table(self, sampler: str, num_inference_steps: int) -> SamplerTable:
        """Raises UnsupportedSamplerError, which names what is near and works."""
        name = canonical_sampler(sampler)
        compiled = self._compile(name, num_inference_steps)
        if isinstance(compiled, SamplerTable):
            return compiled
        reason = "; ".join([compiled, *self._nearest(name, num_inference_steps)])
        raise UnsupportedSamplerError(f"sampler {name!r} at {num_inference_steps} steps: {reason}")

    def scheduler(self, sampler: str) -> Any:
        """The stock diffusers scheduler that a sampler's table is compiled from."""
        spec = SAMPLERS[canonical_sampler(sampler)]
        return getattr(diffusers, spec.scheduler).from_config(self._scheduler_config, **spec.config)

    def _compile_uncached(self, sampler: str, num_inference_steps: int) -> SamplerTable | str:
        """The table, or why there is none: kept like a table, as finding out takes as long."""
        spec = SAMPLERS[sampler]
        try:
            scheduler = self.scheduler(sampler)
            scheduler.set_timesteps(num_inference_steps)
            calls = _probe(copy.deepcopy(scheduler), spec.step_kwargs)
            table = _assemble(scheduler, calls)
            missed_by = _replay_error(table, scheduler, spec.step_kwargs, calls)
        except ValueError as error:
            return str(error).rstrip(".")
        except (IndexError, ZeroDivisionError, RuntimeError):  # what they say is about diffusers' own lines
            missed_by = math.nan
        if math.isnan(missed_by):
            return f"diffusers' {spec.scheduler} fails with so many on this model's noise schedule"
        if missed_by >= MAX_REPLAY_ERROR:
            return (
                f"{spec.scheduler} is not linear with this model's configuration "
                f"(its table misses it by {missed_by:.1e})"
            )
        return table

    def _nearest(self, sampler: str, num_inference_steps: int) -> Iterator[str]:
        """A sentence for the nearest step count and for the nearest sampler of its kind that work, if any."""
        outwards = (
            steps
            for distance in range(1, 101)
            for steps in (num_inference_steps - distance, num_inference_steps + distance)
            if steps > 0 and self._takes(sampler, steps)
        )
        for steps in islice(outwards, 4):  # compiling takes up to a tenth of a second
            if isinstance(self._compile(sampler, steps), SamplerTable):
                yield f"{sampler!r} works at {steps} steps"
                break
        kind = SAMPLERS[sampler].scheduler
        others = [name for name, spec in SAMPLERS.items() if name != sampler and spec.scheduler == kind]
        for name in difflib.get_close_matches(sampler, others, n=3, cutoff=0.0):
            if isinstance(self._compile(name, num_inference_steps), SamplerTable):
                yield f"{name!r} works at {num_inference_steps} steps"
                break

    def _takes(self, sampler: str, num_inference_steps: int) -> bool:
        """Whether the scheduler has timesteps for so many steps, which is quickly found out."""
        try:
            self.scheduler(sampler).set_timesteps(num_inference_steps)
        except ValueError:
            return False
        return True


# --- compiling ---------------------------------------------------------------------------------------------

_Key = tuple[str, int]  # an attribute of a scheduler, and the place in it where it is a list
_LATENTS: _Key = ("latents", 0)
_NOISE_SEED = 0
# Coordinates of a probe: the latents, everything saved and the model's output get one each, in that order;
# the rest stay zero in every input, so that only noise shows there.
_PROBE_SHAPE = torch.Size((1, 16, 1, 1))


@dataclass(frozen=True, slots=True)
class _Call:
    """What one model call's step does: outputs as weights over `inputs`, the model's output and noise."""

    input_scale: float
    inputs: tuple[_Key, ...]
    outputs: Mapping[_Key, torch.Tensor]
    noise_dtype: torch.dtype | None


def _saved(scheduler: Any) -> dict[_Key, torch.Tensor]:
    """What a scheduler carries on: every attribute, or item of a list, of the latents' shape."""
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


def _probe(scheduler: Any, step_kwargs: Mapping[str, Any]) -> list[_Call]:
    """Steps a scheduler on unit vectors: what comes out of a call are columns of weights.

    Before each call the latents and all that the scheduler has saved are replaced by unit vectors. A second
    run on zeros, with the same noise, tells what noise adds.
    """
    calls = []
    for timestep in scheduler.timesteps:
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
    """Whether a scheduler draws its noise in the latents' dtype or always in float32: the streams differ."""
    misses = {
        dtype: float((noisy - _noise_weight(noisy, dtype) * _unit_noise(dtype)).abs().max())
        for dtype in (torch.float64, torch.float32)
    }
    return min(misses, key=lambda dtype: misses[dtype])


def _assemble(scheduler: Any, calls: list[_Call]) -> SamplerTable:
    """Gives everything that is read again a slot of the state, and drops the rest."""
    num_rows = len(calls)
    weights = torch.zeros(num_rows, NUM_OUTPUTS, NUM_INPUTS, dtype=torch.float64)
    read_later: list[_Key] = []  # behind the last row nothing but the latents is wanted
    for row in reversed(range(num_rows)):
        call = calls[row]
        wanted = [_LATENTS, *read_later]
        read = [
            column
            for column in range(1, len(call.inputs))
            if any(call.outputs[key][column] != 0 for key in wanted)
        ]
        if len(read) >= STATE_SLOTS:
            raise UnsupportedSamplerError(
                f"{type(scheduler).__name__} carries {len(read)} tensors from step to step; "
                f"at most {STATE_SLOTS - 1} are kept"
            )
        columns = [0, *read, len(call.inputs), len(call.inputs) + 1]
        slots = [*range(len(read) + 1), STATE_SLOTS, STATE_SLOTS + 1]
        for output, key in enumerate(wanted):
            weights[row, output, slots] = call.outputs[key][columns]
        read_later = [call.inputs[column] for column in read]
    for row, (timestep, call) in enumerate(zip(scheduler.timesteps, calls, strict=True)):
        on_input, on_output = _clean_estimate(scheduler, float(timestep))
        weights[row, STATE_SLOTS, 0] = on_input * call.input_scale
        weights[row, STATE_SLOTS, STATE_SLOTS] = on_output
    return SamplerTable(
        timesteps=scheduler.timesteps.to(torch.float32),
        input_scales=torch.tensor([call.input_scale for call in calls], dtype=torch.float64),
        weights=weights,
        draws_noise=tuple(call.noise_dtype is not None for call in calls),
        initial_scale=float(scheduler.init_noise_sigma),
    )


def _clean_estimate(scheduler: Any, timestep: float) -> tuple[float, float]:
    """Weights of the model's input and output in its estimate of the clean latents."""
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
        raise UnsupportedSamplerError(f"prediction_type {prediction_type!r}; known: {', '.join(estimates)}")
    return estimates[prediction_type]


def _replay_error(
    table: SamplerTable, scheduler: Any, step_kwargs: Mapping[str, Any], calls: list[_Call]
) -> float:
    """How far the table is from the scheduler on a smooth made-up model, relative to the largest latent."""

    def model(latents: torch.Tensor, timestep: float) -> torch.Tensor:
        return torch.sin(2 * latents + timestep / 300) + 0.5 * latents.roll(1, dims=1)

    stock = copy.deepcopy(scheduler)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    latents = (
        table.initial_scale * torch.randn(_PROBE_SHAPE, generator=torch.Generator().manual_seed(2)).double()
    )
    state = torch.zeros(1, STATE_SLOTS, *_PROBE_SHAPE[1:], dtype=torch.float64)
    state[:, 0] = latents
    for row, timestep in enumerate(stock.timesteps):
        model_output = model(stock.scale_model_input(latents, timestep), float(timestep))
        latents = _step(stock, model_output, timestep, latents, generators[0], step_kwargs).double()

        noise = torch.zeros(_PROBE_SHAPE, dtype=torch.float64)
        if (dtype := calls[row].noise_dtype) is not None:
            noise = torch.randn(_PROBE_SHAPE, generator=generators[1], dtype=dtype).double()
        model_output = model(calls[row].input_scale * state[:, 0], float(timestep))
        inputs = torch.cat([state, model_output[:, None], noise[:, None]], dim=1)
        state = advance(table.weights[row : row + 1], inputs)[:, :STATE_SLOTS]
    return float((state[:, 0] - latents).abs().max() / latents.abs().max())
