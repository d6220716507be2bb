"""Converts jobs to and from table rows, and defines the job store's other results."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Row

from serve.generation import GenerationRequest
from serve.jobs.job import IdempotencyKey, Job, JobState, NewJob, StoredPreview, Webhook, WebhookEvent

_REQUEST = TypeAdapter(GenerationRequest)


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a job until it is attempted again or has ended. attempt: the fencing token"""

    job_id: str
    attempt: int

    @classmethod
    def of(cls, job: Job) -> "Claim":
        """The claim of a job that was just claimed."""
        return cls(job.id, job.attempt)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a runner records of a job under way.

    steps_done: of all its images; previews: the latest ones of unfinished images, by image index
    """

    steps_done: int
    previews: Mapping[int, StoredPreview] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Jobs that no runner has begun. oldest_s: seconds that the oldest has waited"""

    jobs: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Look:
    """The work that waits for a runner.

    may_claim: jobs wait; needs_sweep: jobs or keys have expired; is_due: a webhook message is due
    """

    may_claim: bool
    needs_sweep: bool
    is_due: bool


@dataclass(frozen=True, slots=True)
class UnderWay:
    """Jobs that runners hold. is_more_waiting: others will replace them, including jobs of dead runners"""

    jobs: list[Job]
    is_more_waiting: bool


def new_row(new: NewJob) -> dict[str, Any]:
    """The values of an insertion that adds the times. It turns `lifetime_s` into the deadline."""
    return {
        "id": new.request.request_id,
        "owner": new.owner,
        # Runners find their application's jobs by it. Models of a catalog come and go.
        "model": new.request.pool or new.request.model,
        "request": _REQUEST.dump_python(new.request, mode="json"),
        "input": dict(new.input),
        "base_url": new.base_url,
        "webhook_url": new.webhook.url if new.webhook else None,
        "webhook_events": sorted(new.webhook.events) if new.webhook else None,
        "lifetime_s": new.lifetime_s,
        "idempotency_key": idempotency_key_column(new.owner, new.idempotency_key),
        "fingerprint": new.idempotency_key.fingerprint if new.idempotency_key else None,
        "priority": new.request.priority,
        "num_steps": new.request.num_images * new.request.steps_per_image,
        "num_images": new.request.num_images,
        "state": JobState.STARTING,
        "attempt": 0,
        "failures": 0,
        "is_begun": False,
        "steps_done": 0,
        "output": {},
        "previews": {},
        "data_removed": False,
        "is_deleted": False,
    }


def read_job(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        owner=row.owner,
        model=row.model,
        request=_REQUEST.validate_python(row.request),
        input=row.input,
        base_url=row.base_url,
        webhook=_read_webhook(row),
        deadline=row.deadline,
        state=JobState(row.state),
        attempt=row.attempt,
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        steps_done=row.steps_done,
        output={int(index): key for index, key in row.output.items()},
        previews={int(index): StoredPreview(**preview) for index, preview in row.previews.items()},
        error=row.error,
        data_removed=row.data_removed,
        is_deleted=row.is_deleted,
    )


def _read_webhook(row: Row[Any]) -> Webhook | None:
    if row.webhook_url is None:
        return None
    return Webhook(row.webhook_url, frozenset(WebhookEvent(event) for event in row.webhook_events))


def idempotency_key_column(owner: str, key: IdempotencyKey | None) -> str | None:
    """A value unique across clients. The column itself is unique, and SQLite cannot drop that constraint."""
    # Neither part has a line break.
    return None if key is None else f"{owner}\n{key.key}"


def output_column(output: Mapping[int, str]) -> dict[str, str]:
    return {str(index): key for index, key in sorted(output.items())}


def previews_column(previews: Mapping[int, StoredPreview]) -> dict[str, Any]:
    return {str(index): asdict(preview) for index, preview in sorted(previews.items())}


def columns_without_data(job: Job) -> dict[str, Any]:
    """The remains of an expired or deleted job: nothing that its client wrote or that was made from it."""
    request = replace(job.request, prompt="", negative_prompt=None, start=None, adapters=(), text_adapters=())
    return {
        "request": _REQUEST.dump_python(request, mode="json"),
        "input": {},
        "output": {},
        "data_removed": True,
    }
