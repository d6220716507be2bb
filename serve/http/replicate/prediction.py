"""A job as its client sees it: Replicate's prediction object, the same in answers and in webhooks."""

from datetime import UTC, datetime

from serve.http.files import FILES_PATH
from serve.http.replicate.answers import KnownPrediction, PredictionMetrics
from serve.http.replicate.schema import input_warnings
from serve.http.warnings import request_warnings
from serve.jobs.job import Job
from serve.live_ids import live_id

PREDICTIONS_PATH = "/v1/predictions"
_BAR_LENGTH = 10


def describe(job: Job) -> KnownPrediction:
    """The fields that the job alone determines, without its place in the queue and the time left."""
    url = f"{job.base_url}{PREDICTIONS_PATH}/{job.id}"
    return {
        "id": job.id,
        "live_id": live_id(job.id),
        "model": job.request.model,
        "version": job.request.model,
        "status": job.state.value,
        "input": dict(job.input),
        "output": output_urls(job) or None,
        "logs": logs(job),
        "progress": job.fraction_done,
        "error": job.error,
        "metrics": _metrics(job),
        "created_at": timestamp(job.created_at),
        "started_at": timestamp(job.started_at),
        "completed_at": timestamp(job.completed_at),
        "deadline": timestamp(job.deadline),
        "data_removed": job.data_removed,
        "urls": {"get": url, "web": url, "cancel": f"{url}/cancel", "stream": f"{url}/stream"},
    }


def output_urls(job: Job) -> list[str]:
    """URLs in the order of the seeds, without gaps, so that a listed one keeps its place."""
    urls = []
    for index in range(len(job.output)):
        if index not in job.output:
            break
        urls.append(f"{job.base_url}{FILES_PATH}/{job.output[index]}")
    return urls


def logs(job: Job) -> str:
    """The seed in the form of Replicate's own models, warnings, and at the end tqdm's line, from which
    Replicate's client reads the progress."""
    if job.started_at is None:
        return ""
    sentences = [*input_warnings(job.input), *request_warnings(job.request)]
    warnings = "".join(f"Warning: {sentence}\n" for sentence in sentences)
    fraction = job.fraction_done
    bar = "█" * round(_BAR_LENGTH * fraction)
    return (
        f"Using seed: {job.request.seed}\n{warnings}"
        f"{fraction:4.0%}|{bar:<{_BAR_LENGTH}}| {round(fraction * job.num_steps)}/{job.num_steps}\n"
    )


def _metrics(job: Job) -> PredictionMetrics:
    if job.started_at is None or job.completed_at is None:
        return {}
    return {
        "predict_time": job.completed_at - job.started_at,
        "total_time": job.completed_at - job.created_at,
    }


def timestamp(seconds: float | None) -> str | None:
    """A time in seconds since the epoch, in Replicate's format."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
