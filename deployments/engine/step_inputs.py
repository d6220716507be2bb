"""The inputs of one denoising step, made from the requests of its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import torch

from deployments.engine.bank import Scales
from deployments.engine.conditions import Conditions
from deployments.engine.denoising import Denoising


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step of B requests that share a forward of R rows. The runner sends CPU tensors to the device."""

    states: torch.Tensor  # [B, STATE_SLOTS, C, h, w] float32
    noise: torch.Tensor  # [B, C, h, w] float32; zeros, [B, 1, 1, 1], if no request draws any
    weights: torch.Tensor  # [B, NUM_OUTPUTS, NUM_INPUTS] float32
    input_scales: torch.Tensor  # [B] float32
    guidance_scales: torch.Tensor  # [B] float32
    guidance_rescales: torch.Tensor  # [B] float32, 0 without guidance
    first_rows: torch.Tensor  # [B] int64, the negative prompt's row; without guidance the same as the last
    last_rows: torch.Tensor  # [B] int64
    request_of_row: torch.Tensor  # [R] int64
    timesteps: torch.Tensor  # [R] float32
    conditions: Conditions  # R rows

    def tensors(self) -> list[torch.Tensor]:
        return [*self._own().values(), *self.conditions.tensors()]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> StepInputs:
        own = {name: change(tensor) for name, tensor in self._own().items()}
        return replace(self, **own, conditions=self.conditions.map(change))

    def _own(self) -> dict[str, Any]:
        names = [field.name for field in fields(self) if field.name != "conditions"]
        return {name: getattr(self, name) for name in names}


def step_inputs(
    batch: Sequence[Denoising], forward_rows: int, static: bool, scales: Scales | None = None
) -> StepInputs:
    """The next model call of every request in a batch, padded to `forward_rows` rows.

    scales: of the adapters, of forward_rows rows; None without adapters
    A request's rows lie side by side, the negative prompt's first; a call without guidance has only one.
    Padding repeats the first request's row. With static shapes the requests are padded as well, to as many as
    there are rows.
    """
    rows = [item.rows for item in batch]
    ends = list(accumulate(rows))
    padding = forward_rows - ends[-1]
    filled = [*batch, *([batch[0]] * (forward_rows - len(batch)))] if static else batch
    last_rows = [end - 1 for end in ends]
    first_rows = [end - count for end, count in zip(ends, rows, strict=True)]
    request_of_row = [index for index, count in enumerate(rows) for _ in range(count)]
    request_of_row += padding * [0]
    timesteps = torch.stack([item.table.timesteps[item.call] for item in filled])
    conditions = [item.next_conditions for item in batch]
    joined = Conditions.join([*conditions, conditions[0].repeat_first(padding)])
    if scales is not None:
        joined = replace(joined, adapter_scales=scales.transformers, other_scales=scales.others)
    noise = [item.noise() for item in batch] + (len(filled) - len(batch)) * [torch.zeros(1, 1, 1)]
    return StepInputs(
        states=torch.stack([item.state for item in filled]),
        noise=torch.stack(torch.broadcast_tensors(*noise)),  # type: ignore[no-untyped-call]
        weights=torch.stack([item.table.weights[item.call] for item in filled]).float(),
        input_scales=torch.stack([item.table.input_scales[item.call] for item in filled]).float(),
        guidance_scales=torch.tensor([item.request.guidance_scale for item in filled]),
        guidance_rescales=torch.tensor(
            [item.request.guidance_rescale if item.rows == 2 else 0.0 for item in filled]
        ),
        first_rows=torch.tensor(first_rows + (len(filled) - len(batch)) * [0]),
        last_rows=torch.tensor(last_rows + (len(filled) - len(batch)) * [0]),
        request_of_row=torch.tensor(request_of_row),
        timesteps=timesteps[request_of_row],
        conditions=joined,
    )
