"""The events that a forward brings: finished latents, previews and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deployments.engine.denoising import Denoising
from deployments.engine.messages import Checkpoint, DenoisedLatents, DenoiseEvent, StepProgress
from deployments.engine.transfers import receive


def forward_events(
    batch: Sequence[Denoising], estimates: torch.Tensor, checkpoint_interval_s: float | None, now: float
) -> list[tuple[Denoising, DenoiseEvent]]:
    """The events to report when a launched forward is done. The requests have moved on already.

    estimates: of the clean latents, [B, C, h, w], of the batch's requests and then of padding
    checkpoint_interval_s: as in EngineConfig; now: on the engine's clock
    """
    events: list[tuple[Denoising, DenoiseEvent]] = []
    for item, estimate in zip(batch, estimates, strict=False):
        request = item.request
        if item.calls_left == 0:
            events.append((item, DenoisedLatents(request.request_id, receive(item.state[0]))))
            continue
        step = item.steps_done(item.call)
        if step in request.preview_steps and step > item.steps_done(item.call - 1):
            preview = receive(item.preview(estimate))
            events.append((item, StepProgress(request.request_id, step, preview)))
        if checkpoint_interval_s is not None and now - item.checkpointed_at >= checkpoint_interval_s:
            item.checkpointed_at = now
            state = item.saved_state()
            events.append((item, Checkpoint(request.request_id, step, item.call, state)))
    return events
