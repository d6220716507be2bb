"""The supported samplers, and their tables for one model's noise schedule.

torch and diffusers are imported only when the first table is compiled.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from inspect import signature
from itertools import islice
from typing import Any

from deployments.engine.messages import ImageParameters, steps_from_picture
from deployments.engine.sampler_names import ALIASES, nearest_offered, plain
from deployments.engine.sampler_table import SamplerTable

_TABLES_PER_SAMPLER = 400  # kept; there are more with the strengths of images that start from pictures
MAX_CALLS_PER_STEP = 2  # model calls; Heun and KDPM2 make two for most steps


class UnsupportedSamplerError(ValueError):
    """The sampler is unknown, not linear, or impossible with this number of steps."""


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """A sampler as a diffusers scheduler: its class, its configuration, and the arguments of `step`."""

    scheduler: str
    config: Mapping[str, Any] = field(default_factory=dict)
    step_kwargs: Mapping[str, Any] = field(default_factory=dict)


# Latent models do not clip the estimate of x_0; diffusers' own Stable Diffusion pipelines insist on that too.
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


def _by_plain_name() -> dict[str, str]:
    """Every name of a sampler in plain form. The name of a diffusers class means the first sampler made from
    it, which has the class's own settings."""
    names: dict[str, str] = {}
    for sampler, spec in SAMPLERS.items():
        for name in (sampler, spec.scheduler, *ALIASES.get(sampler, ())):
            names.setdefault(plain(name), sampler)
    return names


_BY_PLAIN_NAME = _by_plain_name()


def canonical_sampler(name: str) -> str:
    """The key of SAMPLERS for a name from any program (see `sampler_names`).

    Raises UnsupportedSamplerError, which names the nearest samplers, or all of them.
    """
    found = _BY_PLAIN_NAME.get(plain(name))
    if found is not None:
        return found
    given, offered = repr(name[:60]), ", ".join(SAMPLERS)
    if nearest := nearest_offered(name, _BY_PLAIN_NAME):
        raise UnsupportedSamplerError(
            f"sampler {given} is not offered; the nearest: {', '.join(nearest)}; all: {offered}"
        )
    raise UnsupportedSamplerError(f"unknown sampler {given}; known: {offered}")


def takes_eta(sampler: str) -> bool:
    """Whether the stock scheduler of a sampler, given by its canonical name, takes eta."""
    return "eta" in signature(_scheduler_class(sampler).step).parameters


def keeps_zero_snr(sampler: str) -> bool:
    """Whether the stock scheduler of a sampler, given by its canonical name, can end its noise schedule
    without any signal, as some models were trained."""
    return "rescale_betas_zero_snr" in signature(_scheduler_class(sampler).__init__).parameters


def _scheduler_class(sampler: str) -> Any:
    """The diffusers class of a sampler, given by its canonical name."""
    return getattr(import_module("diffusers"), SAMPLERS[sampler].scheduler)


class SamplerTables:
    """The tables of one model's noise schedule. Each is compiled at its first use and kept.

    scheduler_config: the model's own scheduler configuration (beta schedule, prediction type, ...)
    """

    def __init__(self, scheduler_config: Mapping[str, Any]) -> None:
        self._scheduler_config = dict(scheduler_config)
        self._compile = lru_cache(maxsize=len(SAMPLERS) * _TABLES_PER_SAMPLER)(self._compile_uncached)

    def table(
        self, sampler: str, num_inference_steps: int, eta: float | None = None, strength: float | None = None
    ) -> SamplerTable:
        """The table of a sampler at a number of steps.

        eta: replaces the sampler's own, if it has one
        strength: the share of the steps that is done, of an image that starts from a picture
        Raises UnsupportedSamplerError, which names near alternatives that work.
        """
        name = canonical_sampler(sampler)
        num_steps = None if strength is None else steps_from_picture(num_inference_steps, strength)
        if num_steps == 0:
            raise UnsupportedSamplerError(
                f"strength {strength} at {num_inference_steps} steps leaves no step to do"
            )
        compiled = self._compile(name, num_inference_steps, eta, num_steps)
        if isinstance(compiled, SamplerTable):
            return compiled
        reason = "; ".join([compiled, *self._nearest(name, num_inference_steps)])
        raise UnsupportedSamplerError(f"sampler {name!r} at {num_inference_steps} steps: {reason}")

    def table_for(self, image: ImageParameters) -> SamplerTable:
        """The table for an image. Raises UnsupportedSamplerError."""
        return self.table(image.sampler, image.num_inference_steps, image.eta, image.strength)

    def scheduler(self, sampler: str) -> Any:
        """The stock diffusers scheduler from which a sampler's table is compiled."""
        name = canonical_sampler(sampler)
        return _scheduler_class(name).from_config(self._scheduler_config, **SAMPLERS[name].config)

    def _compile_uncached(
        self,
        sampler: str,
        num_inference_steps: int,
        eta: float | None = None,
        num_steps: int | None = None,
    ) -> SamplerTable | str:
        """The table, or the reason why there is none. Reasons are kept too, as finding them takes as long.

        num_steps: the last ones, of an image that starts from a picture; None for one that starts from noise
        """
        from deployments.engine.sampler_compiler import compile_table  # noqa: PLC0415

        spec = SAMPLERS[sampler]
        own_eta = {} if eta is None else {"eta": eta}
        try:
            scheduler = self.scheduler(sampler)
            scheduler.set_timesteps(num_inference_steps)
            # As in diffusers' pipelines, also for samplers with more than one call per step.
            begin = None if num_steps is None else (num_inference_steps - num_steps) * scheduler.order
            return compile_table(scheduler, {**spec.step_kwargs, **own_eta}, begin)
        except ValueError as error:
            return str(error).rstrip(".")
        except (IndexError, ArithmeticError, RuntimeError):  # their messages are about diffusers' own code
            return f"diffusers' {spec.scheduler} fails with so many on this model's noise schedule"

    def _nearest(self, sampler: str, num_inference_steps: int) -> Iterator[str]:
        """A sentence for the nearest step count and the nearest sampler of its kind that work, if any do."""
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
        """Whether the scheduler has timesteps for that many steps, which is a quick check."""
        try:
            self.scheduler(sampler).set_timesteps(num_inference_steps)
        except ValueError:
            return False
        return True
