"""A forward that is under way on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deployments.engine.denoising import Denoising
from deployments.engine.device_step import Completion
from deployments.engine.messages import DenoiseEvent
from deployments.engine.reports import ForwardStep


@dataclass(frozen=True, slots=True)
class LaunchedForward:
    """A forward that was launched and is not finished.

    events: the events to report when the device is done; their tensors have no values before
    started: when its launch began, by time.perf_counter
    launch_s: how long its launch took
    """

    batch: Sequence[Denoising]
    steps: Sequence[ForwardStep]
    events: list[tuple[Denoising, DenoiseEvent]]
    completion: Completion
    started: float
    launch_s: float
    forward_rows: int
    predicted_s: float
