"""A job: its request, its progress, and its states."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from serve.generation import GenerationRequest


class JobState(StrEnum):
    """Replicate's states and no others, because its client waits for ever on an unknown state."""

    STARTING = "starting"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        return not TRANSITIONS[self]


# From processing to starting: a stopping runner gives it back. To itself: taken over from a dead runner.
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.STARTING: frozenset({JobState.PROCESSING, JobState.FAILED, JobState.CANCELED}),
    JobState.PROCESSING: frozenset(JobState),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELED: frozenset(),
}


class WebhookEvent(StrEnum):
    """The events of webhooks, by the names of Replicate's `webhook_events_filter`."""

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
    """The key of one client. Another client may use the same key.

    fingerprint: of the payload; reusing a key with another payload is a client's mistake
    """

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class NewJob:
    """An accepted job that is not on disk yet.

    request: its request_id is the job's id, which cannot be guessed
    owner: the name of the job's client, without line breaks; empty without API keys
    input: as the client gave it
    base_url: the URL by which the client reached us, without a slash at the end
    lifetime_s: an unfinished job is canceled after this
    """

    request: GenerationRequest
    input: Mapping[str, Any]
    base_url: str
    webhook: Webhook | None = None
    lifetime_s: float | None = None
    idempotency_key: IdempotencyKey | None = None
    owner: str = ""


@dataclass(frozen=True, slots=True)
class StoredPreview:
    """The latest preview of an unfinished image.

    index: from 0, over all attempts; step: made after this many of the image's steps
    key: in the object store
    """

    index: int
    step: int
    key: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is on disk. Times are in seconds since the epoch, on the database's clock.

    attempt: the number of attempts, and the fencing token of the current one
    steps_done: denoising steps of all its images together, of num_steps
    output: the object store's keys of finished images, by image index
    previews: the latest ones of unfinished images, by image index; empty once the job is over
    data_removed: input and output were deleted, at the client's wish or after the retention time
    is_deleted: the client has deleted it, so no client sees it any more; it is over
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
    previews: Mapping[int, StoredPreview]
    error: str | None
    data_removed: bool
    is_deleted: bool

    @property
    def num_steps(self) -> int:
        return self.request.num_images * self.request.steps_per_image

    @property
    def fraction_done(self) -> float:
        return 1.0 if self.state is JobState.SUCCEEDED else self.steps_done / self.num_steps
