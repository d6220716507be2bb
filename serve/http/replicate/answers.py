"""The types of what Replicate's dialect answers, for the code that makes it and for the OpenAPI document."""

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from serve.jobs.job import JobState

Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Url = Annotated[str, Field(json_schema_extra={"format": "uri"})]


class PredictionUrls(TypedDict):
    get: Url
    web: Url
    cancel: Url
    stream: Url


class PredictionMetrics(TypedDict, total=False):
    """Seconds that a finished prediction took."""

    predict_time: float
    total_time: float


class KnownPrediction(TypedDict):
    """What is known of a prediction from its job alone."""

    id: str
    model: str
    version: str
    status: Annotated[str, Field(json_schema_extra={"enum": [state.value for state in JobState]})]
    input: Annotated[dict[str, Any], Field(description="As it was given; empty once data_removed.")]
    output: Annotated[
        list[Url] | None, Field(description="URLs of the images that are done, in the order of their seeds.")
    ]
    logs: Annotated[str, Field(description="Warnings, and a progress bar as tqdm prints it.")]
    progress: Annotated[float, Field(ge=0, le=1)]
    error: str | None
    metrics: PredictionMetrics
    created_at: Timestamp | None
    started_at: Timestamp | None
    completed_at: Timestamp | None
    deadline: Annotated[Timestamp | None, Field(description="It is canceled then, if it is not finished.")]
    data_removed: Annotated[bool, Field(description="Input and output were deleted, their time being over.")]
    urls: PredictionUrls


class Forecast(TypedDict):
    """What is known of a job that waits."""

    queue_position: Annotated[int | None, Field(description="Jobs before it; null for one that has begun.")]
    eta_s: Annotated[float | None, Field(description="Seconds until it is finished, roughly.")]


class Prediction(KnownPrediction, Forecast):
    """A job: what was asked for, and how far it is."""


class Predictions(TypedDict):
    """A page of the client's predictions, newest first."""

    next: Annotated[Url | None, Field(description="The page of older predictions.")]
    previous: Annotated[Url | None, Field(description="The page of newer predictions.")]
    results: list[KnownPrediction]


class ModelVersion(TypedDict):
    """A version of a model, with the schema of its input."""

    id: str
    created_at: Timestamp
    cog_version: str
    openapi_schema: dict[str, Any]


class ModelVersions(TypedDict):
    """The only version."""

    next: None
    previous: None
    results: list[ModelVersion]


class ReplicateModel(TypedDict):
    """A model that is served, as Replicate's clients ask for it."""

    url: Url
    owner: str
    name: str
    description: str | None
    visibility: str
    github_url: str | None
    paper_url: str | None
    license_url: str | None
    run_count: int
    cover_image_url: str | None
    default_example: None
    latest_version: ModelVersion
