"""A request in the engine: its place in its sampler's table, and the inputs of its next model call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deployments.engine.adapters import of_unet
from deployments.engine.bank import Block, RowAdapters
from deployments.engine.beginnings import Kept, beginning_of, draw_noise
from deployments.engine.conditions import Conditions, UNetInterface, conditions_of
from deployments.engine.messages import DenoiseRequest
from deployments.engine.reports import ForwardStep
from deployments.engine.sampler_table import STATE_SLOTS, SamplerTable
from deployments.engine.step_scheduler import Group
from deployments.engine.transfers import receive, send


@dataclass(eq=False, slots=True)
class Denoising:
    """The state of one request, the only thing in the engine that changes.

    arrival: in seconds since the epoch
    unloaded_s: seconds that the request would take alone
    state: [STATE_SLOTS, C, h, w] float32, the latents first, after every launched call
    call: the index in the table of the call that is launched next
    checkpointed_at: time of the last checkpoint, or of the start, in seconds since the epoch
    kept: what a mask keeps of the picture; None without a mask
    adapters: those of the U-Net with their scales, held here for as long as the request is
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
    kept: Kept | None = None
    adapters: Sequence[tuple[Block, float]] = ()
    call: int = 0
    _noise: torch.Tensor | None = None  # for the next call, once drawn

    @property
    def rows(self) -> int:
        """Rows in the U-Net's batch at the next call."""
        return self.request.rows_at(self.call)

    @property
    def row_adapters(self) -> RowAdapters:
        """The adapters of the next call's rows."""
        return RowAdapters(self.rows, self.adapters)

    @property
    def next_conditions(self) -> Conditions:
        """The inputs of the next call's rows; without guidance, only the prompt's."""
        return self.conditions.last(self.rows)

    @property
    def next_step(self) -> ForwardStep:
        """What the next call does."""
        return ForwardStep(self.request.request_id, self.steps_done(self.call + 1), self.rows)

    @property
    def calls_left(self) -> int:
        return self.table.num_calls - self.call

    def steps_done(self, call: int) -> int:
        """Steps that are done before call `call`. A sampler may call the model more than once per step."""
        return -(-call * self.request.num_steps // self.table.num_calls)

    def noise(self) -> torch.Tensor:
        """The noise that the sampler adds at the next call, [C, h, w] on the CPU; a zero, [1, 1, 1], if none.

        It is drawn once, even if the call is launched again, because each draw moves the generator on.
        """
        if self._noise is None:
            draws = self.table.draws_noise[self.call]
            self._noise = draw_noise(self.generator, self.state.shape[1:]) if draws else torch.zeros(1, 1, 1)
        return self._noise

    def advance(self, state: torch.Tensor) -> None:
        """Moves on after a launched call. state: the new state"""
        if self.kept is not None and self.table.known is not None:
            latents = self.kept.put_back(state[0], self.table.known[self.call])
            state = torch.cat([latents[None], state[1:]])
        self.state = state
        self.call += 1
        self._noise = None

    def preview(self, estimate: torch.Tensor) -> torch.Tensor:
        """The estimate of the clean latents, with what a mask keeps of the picture."""
        return estimate if self.kept is None else self.kept.put_back(estimate, torch.tensor([1.0, 0.0]))

    def saved_state(self) -> torch.Tensor:
        """A copy on the CPU of the slots that later calls read; see `transfers.receive`."""
        return receive(self.state[: self.table.num_slots(self.call)])


def begin(
    request: DenoiseRequest,
    table: SamplerTable,
    group: Group,
    unet: UNetInterface,
    arrival: float,
    now: float,
    unloaded_s: float,
    blocks: Sequence[Block],
) -> Denoising:
    """Starts or resumes a request. Draws in diffusers' order: for the first latents, then step by step.

    blocks: the request's adapters
    """
    by_digest = {block.digest: block for block in blocks}
    generator = torch.Generator().manual_seed(request.seed)
    shape = torch.Size((unet.latent_channels, *group.latent_shape))
    beginning = beginning_of(request, table, generator, shape, unet.picture_channels)
    state = torch.zeros(STATE_SLOTS, *shape)
    state[0] = beginning.latents
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
        conditions=conditions_of(request, beginning.picture_channels, unet),
        generator=generator,
        state=send(state, unet.device),
        kept=beginning.kept and beginning.kept.map(lambda tensor: send(tensor, unet.device)),
        adapters=[(by_digest[use.adapter.digest], use.scale) for use in of_unet(request.adapters)],
        call=call,
    )
