"""A job: what was asked for, how far it is, and the states that it goes through."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from serve.generation import GenerationRequest


class JobState(StrEnum):
    """Replicate's, and no others: its client waits for ever on one that it does not know."""

    STARTING = "starting"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        return not TRANSITIONS[self]


# From processing back to starting: given back by a runner that stops. To itself: taken over from a dead one.
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.STARTING: frozenset({JobState.PROCESSING, JobState.FAILED, JobState.CANCELED}),
    JobState.PROCESSING: frozenset(JobState),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELED: frozenset(),
}


class WebhookEvent(StrEnum):
    """What a client can be told of; the names of Replicate's `webhook_events_filter`."""

    START = "start"
    OUTPUT = "output"
    LOGS = "logs"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class Webhook:
    url: str
    events: frozenset[WebhookEvent]


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """One client's; another's may be the same.

    fingerprint: of the payload; the same key with another one is a mistake of the client's
    """

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class NewJob:
    """An accepted job that is not on disk yet.

    request: its request_id is the job's id, unguessable
    owner: the name of the client whose it is, without line breaks; empty where there are no API keys
    input: as the client gave it
    base_url: under which the client reached us, without a slash at the end
    lifetime_s: a job that is not finished then is canceled
    """

    request: GenerationRequest
    input: Mapping[str, Any]
    base_url: str
    webhook: Webhook | None = None
    lifetime_s: float | None = None
    idempotency_key: IdempotencyKey | None = None
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is on disk. Times are in seconds since the epoch, on the database's clock.

    attempt: how often it was begun, and the fencing token of whoever runs it now
    steps_done: denoising steps of all its images together, of num_steps
    output: the object store's keys of the images that are done, by the index of the image
    data_removed: input and output were deleted when their time was over
    """

    id: str
    owner: str
    model: str
    request: GenerationRequest
    input: Mapping[str, Any]
    base_url: str
    webhook: Webhook | None
    deadline: float | None
    state: JobState
    attempt: int
    created_at: float
    started_at: float | None
    completed_at: float | None
    steps_done: int
    output: Mapping[int, str]
    error: str | None
    data_removed: bool

    @property
    def num_steps(self) -> int:
        return self.request.num_images * self.request.num_inference_steps

    @property
    def fraction_done(self) -> float:
        return 1.0 if self.state is JobState.SUCCEEDED else self.steps_done / self.num_steps
