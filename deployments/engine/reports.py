"""What the engine did in a step."""

from dataclasses import dataclass

from deployments.engine.messages import DenoiseEvent, LatentShape


@dataclass(frozen=True, slots=True)
class ForwardReport:
    """What one forward did.

    rows: rows with work; forward_rows: rows with padding
    seconds: time since its launch or, if that is later, since the previous forward was finished. The launch
        of the next forward may lie in between, so one forward can seem too long, the next as much too short
    predicted_s: the cost model's prediction
    """

    num_requests: int
    rows: int
    forward_rows: int
    latent_shape: LatentShape
    seconds: float
    predicted_s: float


@dataclass(frozen=True, slots=True)
class StepReport:
    """The result of a step. forward: the forward that was finished, None if there was none"""

    events: list[DenoiseEvent]
    forward: ForwardReport | None
