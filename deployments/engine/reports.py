"""What the engine did in a step."""

from collections.abc import Sequence
from dataclasses import dataclass

from deployments.engine.messages import DenoiseEvent, LatentShape


@dataclass(frozen=True, slots=True)
class ForwardStep:
    """What a forward did for one of its requests. step: the request's steps that are done after it"""

    request_id: str
    step: int
    rows: int


@dataclass(frozen=True, slots=True)
class ForwardReport:
    """What one forward did.

    steps: one for each of its requests; forward_rows: rows with padding
    seconds: time since its launch or, if that is later, since the previous forward was finished. The launch
        of the next forward may lie in between, so one forward can seem too long, the next as much too short
    predicted_s: the cost model's prediction
    """

    steps: Sequence[ForwardStep]
    forward_rows: int
    latent_shape: LatentShape
    seconds: float
    predicted_s: float

    @property
    def num_requests(self) -> int:
        return len(self.steps)

    @property
    def rows(self) -> int:
        """Rows with work."""
        return sum(step.rows for step in self.steps)


@dataclass(frozen=True, slots=True)
class StepReport:
    """The result of a step. forward: the forward that was finished, None if there was none"""

    events: list[DenoiseEvent]
    forward: ForwardReport | None
