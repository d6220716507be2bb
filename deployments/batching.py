"""The limits within which a stage's `@serve.batch` collects a batch."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Batching:
    """A batch starts when it has max_batch_size items or its first has waited batch_wait_timeout_s."""

    max_batch_size: int
    batch_wait_timeout_s: float

    def apply_to(self, batched: Any) -> None:
        """Sets the limits on a `@serve.batch` method, before its first call."""
        batched.set_max_batch_size(self.max_batch_size)
        batched.set_batch_wait_timeout_s(self.batch_wait_timeout_s)
