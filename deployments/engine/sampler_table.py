"""A sampler at a number of steps, as a table: one small matrix per model call.

Every diffusers scheduler for this model family is linear in its inputs. The next latents and the values it
saves are weighted sums of the current latents, the values saved before, the guided model output and fresh
noise. The weights depend on the step alone. So no sampler mathematics is written here: `sampler_compiler`
reads the weights off the stock scheduler, and `advance` applies them in one operation to requests at
different calls of different tables.

One call's matrix acts on a request's state `[STATE_SLOTS, C, h, w]`. Slot 0 is the latents, and the others
hold what the scheduler saves (earlier model outputs, an earlier sample). From the inputs
`[state..., model output, noise]`, stacked to `[STATE_SLOTS + 2, C, h, w]`, it computes the next state and one
further output: the current estimate of the clean latents, for previews.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STATE_SLOTS = 5
NUM_INPUTS = STATE_SLOTS + 2  # the state, the guided model output, fresh noise
NUM_OUTPUTS = STATE_SLOTS + 1  # the next state, the estimate of the clean latents


@dataclass(frozen=True, slots=True)
class SamplerTable:
    """A sampler at a number of steps, one entry per model call (some samplers make two calls per step).

    timesteps: [calls] float32, the model's timestep inputs
    input_scales: [calls] float64, factors for the latents before they enter the model
    weights: [calls, NUM_OUTPUTS, NUM_INPUTS] float64
    draws_noise: for each call, whether it draws from the request's generator
    initial_scale: factor for the initial standard normal latents
    start: weights of (picture's latents, noise) in the first latents; None if it starts from noise alone
    known: [calls, 2] float64, the same weights for what a mask keeps, after each call; None likewise
    """

    timesteps: torch.Tensor
    input_scales: torch.Tensor
    weights: torch.Tensor
    draws_noise: tuple[bool, ...]
    initial_scale: float
    start: tuple[float, float] | None = None
    known: torch.Tensor | None = None

    @property
    def num_calls(self) -> int:
        return len(self.draws_noise)

    def num_slots(self, call: int) -> int:
        """The number of state slots, counted from the first, that calls from `call` to the end read."""
        read = self.weights[call:, :, :STATE_SLOTS].ne(0).any(dim=0).any(dim=0)  # [STATE_SLOTS]
        return int(read.nonzero().max()) + 1


def advance(weights: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Computes one weighted sum per request.

    weights [B, NUM_OUTPUTS, NUM_INPUTS], inputs [B, NUM_INPUTS, C, h, w] -> [B, NUM_OUTPUTS, C, h, w].

    It is written as products and sums over the inputs, in order. These are elementwise, so a request's bits
    cannot depend on the number of other requests, which no matrix product promises.
    """
    weights = weights[..., None, None, None]
    outputs = weights[:, :, 0] * inputs[:, None, 0]
    for index in range(1, inputs.shape[1]):
        outputs = outputs + weights[:, :, index] * inputs[:, None, index]
    return outputs
