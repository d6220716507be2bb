"""The types of answers in Replicate's dialect, for the code that makes them and for the OpenAPI document."""

from typing import Annotated, Any, Literal

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
    """The fields of a prediction that its job alone determines."""

    id: str
    live_id: Annotated[str, Field(description="Its id in `GET /v1/status`, which every client sees.")]
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
    """The forecast for a waiting job."""

    queue_position: Annotated[int | None, Field(description="Jobs before it; null for one that has begun.")]
    eta_s: Annotated[float | None, Field(description="Seconds until it is finished, roughly.")]


class Prediction(KnownPrediction, Forecast):
    """A job: its request and its progress."""


class Predictions(TypedDict):
    """A page of the client's predictions, newest first."""

    next: Annotated[Url | None, Field(description="The page of older predictions.")]
    previous: Annotated[Url | None, Field(description="The page of newer predictions.")]
    results: list[KnownPrediction]


class PredictionPreview(TypedDict):
    """A preview of an unfinished image."""

    image_index: int
    preview_index: Annotated[int, Field(description="From 0 for each image.")]
    step: Annotated[int, Field(description="Denoising steps of the image that are done.")]
    media_type: Annotated[str, Field(examples=["image/jpeg"])]
    b64_json: Annotated[str, Field(description="The image file, in base64.")]


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
    """A served model in the form for Replicate's clients."""

    url: Url
    owner: str
    name: str
    description: str | None
    visibility: str
    is_official: bool
    github_url: str | None
    paper_url: str | None
    license_url: str | None
    run_count: int
    cover_image_url: str | None
    default_example: None
    latest_version: ModelVersion


class FileUrls(TypedDict):
    get: Annotated[Url, Field(description="The file's bytes. Who has this URL may have them.")]


class Checksums(TypedDict):
    sha256: str
    md5: str


class File(TypedDict):
    """A file that a client has uploaded."""

    id: str
    name: str
    content_type: str
    size: Annotated[int, Field(description="Bytes.")]
    etag: str
    checksums: Checksums
    metadata: dict[str, Any]
    created_at: Timestamp | None
    expires_at: Annotated[Timestamp | None, Field(description="It is deleted then.")]
    urls: FileUrls


class Files(TypedDict):
    """A page of the client's files, newest first."""

    next: Annotated[Url | None, Field(description="The page of older files.")]
    previous: Annotated[Url | None, Field(description="The page of newer files.")]
    results: list[File]


class Account(TypedDict):
    """The client that the API key belongs to."""

    type: Literal["user"]
    username: Annotated[str, Field(description="The key's name, or `anonymous` where no keys are needed.")]
    name: str
    github_url: None
    avatar_url: None


class WebhookSecret(TypedDict):
    key: Annotated[str, Field(description="`whsec_` and base64, as Standard Webhooks has it.")]


class Hardware(TypedDict):
    """What the model runs on."""

    name: str
    sku: str
