"""A request in the engine: where it is in its table, and all that its next model call needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deployments.engine.conditions import Conditions, UNetInterface, conditions_of
from deployments.engine.messages import DenoiseRequest
from deployments.engine.sampler_table import STATE_SLOTS, SamplerTable
from deployments.engine.step_scheduler import Group
from deployments.engine.transfers import receive, send


@dataclass(eq=False, slots=True)
class Denoising:
    """The only thing in the engine that changes.

    arrival: in seconds since the epoch
    unloaded_s: what it would take alone
    state: [STATE_SLOTS, C, h, w] float32, the latents first, after all that was launched
    call: of the table, the one that is launched next
    checkpointed_at: when it last could be resumed from where it was, in seconds since the epoch
    """

    request: DenoiseRequest
    table: SamplerTable
    group: Group
    arrival: float
    unloaded_s: float
    checkpointed_at: float
    conditions: Conditions
    generator: torch.Generator
    state: torch.Tensor
    call: int = 0
    _noise: torch.Tensor | None = None  # of the next call, once it was asked for

    @property
    def num_calls(self) -> int:
        return self.table.num_calls

    @property
    def calls_left(self) -> int:
        return self.table.num_calls - self.call

    def steps_done(self, call: int) -> int:
        """Steps that are done where `call` comes next; a sampler may make more than one for a step."""
        return -(-call * self.request.num_inference_steps // self.table.num_calls)

    def noise(self) -> torch.Tensor:
        """What the sampler adds at the next call, [C, h, w] on the CPU; zeros where it adds none.

        Drawn once, however often the call is launched: each draw moves the generator on.
        """
        if self._noise is None:
            shape = self.state.shape[1:]
            draws = self.table.draws_noise[self.call]
            self._noise = draw_noise(self.generator, shape) if draws else torch.zeros(shape)
        return self._noise

    def advance(self, state: torch.Tensor) -> None:
        """A call was launched. state: what it makes of the last one"""
        self.state = state
        self.call += 1
        self._noise = None

    def saved_state(self) -> torch.Tensor:
        """A copy on the CPU of those slots that the calls to come read; see `transfers.receive`."""
        return receive(self.state[: self.table.num_slots(self.call)])


def begin(
    request: DenoiseRequest,
    table: SamplerTable,
    group: Group,
    unet: UNetInterface,
    arrival: float,
    now: float,
    unloaded_s: float,
) -> Denoising:
    """Noise is drawn in diffusers' order: the latents first, then step by step."""
    generator = torch.Generator().manual_seed(request.seed)
    shape = torch.Size((unet.in_channels, *group.latent_shape))
    state = torch.zeros(STATE_SLOTS, *shape)
    state[0] = table.initial_scale * draw_noise(generator, shape)
    call = 0
    if checkpoint := request.resume_from:
        call = checkpoint.call
        state[: len(checkpoint.state)] = checkpoint.state
        for _ in range(sum(table.draws_noise[:call])):
            draw_noise(generator, shape)
    return Denoising(
        request=request,
        table=table,
        group=group,
        arrival=arrival,
        unloaded_s=unloaded_s,
        checkpointed_at=now,
        conditions=conditions_of(request, unet),
        generator=generator,
        state=send(state, unet.device),
        call=call,
    )


def draw_noise(generator: torch.Generator, shape: torch.Size) -> torch.Tensor:
    # Of the shape that diffusers draws for one image: the stream of a generator depends on it.
    return torch.randn(1, *shape, generator=generator)[0]
