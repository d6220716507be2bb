"""A sampler at a number of steps, as a table: one small matrix per model call.

Every diffusers scheduler for this model family is linear in what it is given: the next latents and whatever
it saves for later are weighted sums of the current latents, what it saved before, the guided model output and
fresh noise, with weights that depend on the step alone. So no sampler mathematics is written here:
`sampler_compiler` reads the weights off the stock scheduler, and `advance` applies them to requests that are
at different calls of different tables in one operation.

One call's matrix acts on a request's state `[STATE_SLOTS, C, h, w]`, slot 0 being the latents and the others
what the scheduler saves (earlier model outputs, an earlier sample). With the inputs
`[state..., model output, noise]` stacked to `[STATE_SLOTS + 2, C, h, w]`, it gives the next state and, as one
output more, the current estimate of the clean latents (for previews).
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
    """A sampler at a number of steps, model call by model call (some samplers make two a step).

    timesteps: [calls] float32, as the model is given them
    input_scales: [calls] float64, what the latents are multiplied by on their way into the model
    weights: [calls, NUM_OUTPUTS, NUM_INPUTS] float64
    draws_noise: by call, whether a draw from the request's generator belongs to it
    initial_scale: what the first standard normal draw is multiplied by
    """

    timesteps: torch.Tensor
    input_scales: torch.Tensor
    weights: torch.Tensor
    draws_noise: tuple[bool, ...]
    initial_scale: float

    @property
    def num_calls(self) -> int:
        return len(self.draws_noise)

    def num_slots(self, call: int) -> int:
        """How many state slots, from the first on, the calls from `call` to the end read."""
        read = self.weights[call:, :, :STATE_SLOTS].ne(0).any(dim=0).any(dim=0)  # [STATE_SLOTS]
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
