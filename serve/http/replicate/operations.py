"""The operations of Replicate's dialect, for the OpenAPI document."""

from serve.errors import (
    AdapterNotFoundError,
    AdapterUnavailableError,
    AdapterUnusableError,
    ForbiddenError,
    IdempotencyKeyReusedError,
    InvalidInputError,
    InvalidRequestError,
    JobNotFoundError,
    JobStoreUnavailableError,
    ModelNotFoundError,
    NotReadyError,
    ObjectNotFoundError,
    ObjectStoreUnavailableError,
    QueueFullError,
    RateLimitError,
    StorageFullError,
)
from serve.http.operations import EVENT_STREAM, Answer, Operation, Parameter
from serve.http.replicate.answers import (
    Account,
    File,
    Files,
    Hardware,
    ModelVersion,
    ModelVersions,
    Prediction,
    PredictionPreview,
    Predictions,
    ReplicateModel,
    WebhookSecret,
)
from serve.http.replicate.schema import PredictionBody
from serve.http.replicate.upload_form import UploadForm

_PREDICTIONS, _MODELS = "Predictions (Replicate)", "Models (Replicate)"
_FILES, _ACCOUNT = "Files (Replicate)", "Account (Replicate)"
_FILE = Parameter(name="file_id", place="path", description="The file's `id`.")
_CURSOR = Parameter(
    name="cursor", place="query", description="Comes with the URLs `next` and `previous` of a page."
)
_JOB = Parameter(name="job_id", place="path", description="The prediction's `id`.")
_OF_A_JOB = (JobNotFoundError, JobStoreUnavailableError, StorageFullError)
_MODEL = (
    Parameter(name="owner", place="path", description="Anybody.", example="midstep"),
    Parameter(name="name", place="path", description="The model's id.", example="shapes"),
    Parameter(name="version", place="path", description="The model's id.", example="shapes"),
)

CREATE = Operation(
    tag=_PREDICTIONS,
    summary="Create a prediction",
    description="A prediction is a durable job: once this has answered, it is not lost. Under load it waits "
    "for its turn and is not refused. The model is named by the path or by `version`.",
    parameters=(
        *_MODEL,
        Parameter(
            name="Prefer",
            place="header",
            description="`wait`, or `wait=N` for N seconds, at most 60: answers when it is finished or then.",
            example="wait=5",
        ),
        Parameter(
            name="Cancel-After",
            place="header",
            description="Cancels it if it is not finished by then.",
            example="5m",
        ),
        Parameter(
            name="Idempotency-Key",
            place="header",
            description="A request that comes again with the same key gets the prediction of the first one.",
        ),
    ),
    body=PredictionBody,
    examples={
        "plain": {
            "version": "shapes",
            "input": {"prompt": "a red star on a blue background", "num_inference_steps": 8, "seed": 1},
        },
    },
    answers=(
        Answer(
            status=201,
            description="The prediction.",
            type=Prediction,
            headers={"location": "The URL to ask after it."},
        ),
    ),
    errors=(
        InvalidInputError,
        IdempotencyKeyReusedError,
        ModelNotFoundError,
        AdapterNotFoundError,
        AdapterUnavailableError,
        AdapterUnusableError,
        ForbiddenError,
        NotReadyError,
        QueueFullError,
        RateLimitError,
        JobStoreUnavailableError,
        StorageFullError,
    ),
)
PAGE = Operation(
    tag=_PREDICTIONS,
    summary="List predictions",
    description="The client's own, newest first, a hundred at a time.",
    parameters=(_CURSOR,),
    answers=(Answer(description="A page.", type=Predictions),),
    errors=(InvalidRequestError, JobStoreUnavailableError),
)
GET = Operation(
    tag=_PREDICTIONS,
    summary="Get a prediction",
    parameters=(_JOB,),
    answers=(Answer(description="The prediction as it is now.", type=Prediction),),
    errors=_OF_A_JOB,
)
CANCEL = Operation(
    tag=_PREDICTIONS,
    summary="Cancel a prediction",
    description="What is finished stays as it is.",
    parameters=(_JOB,),
    answers=(Answer(description="The prediction as it is now.", type=Prediction),),
    errors=_OF_A_JOB,
)
DELETE = Operation(
    tag=_PREDICTIONS,
    summary="Delete a prediction",
    description="What is not finished is canceled. Nobody sees it any more, its `Idempotency-Key` is free "
    "again, and its input and images are deleted within a minute.",
    parameters=(_JOB,),
    answers=(Answer(status=204, description="It is deleted.", media_types=()),),
    errors=_OF_A_JOB,
)
EVENTS = Operation(
    tag=_PREDICTIONS,
    summary="Watch a prediction",
    description="The prediction now and after every change, and previews of unfinished images if its input "
    "has `num_previews`, until it is finished. A new connection begins anew.",
    parameters=(_JOB,),
    answers=(
        Answer(
            description="`prediction`: as it is now; `preview`: the newest one of an image. The last event "
            "is a finished prediction.",
            media_types=(EVENT_STREAM,),
            events={"prediction": Prediction, "preview": PredictionPreview},
        ),
    ),
    errors=_OF_A_JOB,
)
STREAM = Operation(
    tag=_PREDICTIONS,
    summary="Follow a prediction",
    description="From the start, or from after the event that is named, to the end.",
    parameters=(
        _JOB,
        Parameter(
            name="Last-Event-ID", place="header", description="The last event that was seen.", example="1-8"
        ),
    ),
    answers=(
        Answer(
            description="`output`: the URL of an image; `logs`: the progress; `error`; `done`: the end.",
            media_types=(EVENT_STREAM,),
            events={"output": str, "logs": str, "error": dict[str, str], "done": dict[str, str]},
        ),
    ),
    errors=_OF_A_JOB,
)
MODEL = Operation(
    tag=_MODELS,
    summary="Get a model",
    parameters=_MODEL,
    answers=(Answer(description="The model.", type=ReplicateModel),),
    errors=(ModelNotFoundError,),
)
VERSIONS = Operation(
    tag=_MODELS,
    summary="List a model's versions",
    parameters=_MODEL,
    answers=(Answer(description="All versions: there is one.", type=ModelVersions),),
    errors=(ModelNotFoundError,),
)
VERSION = Operation(
    tag=_MODELS,
    summary="Get a model's version",
    description="Its `openapi_schema` has the schema of a prediction's input.",
    parameters=_MODEL,
    answers=(Answer(description="The version.", type=ModelVersion),),
    errors=(ModelNotFoundError,),
)
CREATE_FILE = Operation(
    tag=_FILES,
    summary="Upload a file",
    description="It is the client's own, and deleted after a day.",
    body=UploadForm,
    body_media_types=("multipart/form-data",),
    answers=(Answer(status=201, description="The file.", type=File),),
    errors=(
        InvalidRequestError,
        JobStoreUnavailableError,
        ObjectStoreUnavailableError,
        StorageFullError,
    ),
)
FILES_PAGE = Operation(
    tag=_FILES,
    summary="List files",
    description="The client's own, newest first, a hundred at a time.",
    parameters=(_CURSOR,),
    answers=(Answer(description="A page.", type=Files),),
    errors=(InvalidRequestError, JobStoreUnavailableError),
)
GET_FILE = Operation(
    tag=_FILES,
    summary="Get a file's description",
    parameters=(_FILE,),
    answers=(Answer(description="The description.", type=File),),
    errors=(ObjectNotFoundError, JobStoreUnavailableError),
)
DELETE_FILE = Operation(
    tag=_FILES,
    summary="Delete a file",
    parameters=(_FILE,),
    answers=(Answer(status=204, description="It is deleted.", media_types=()),),
    errors=(
        ObjectNotFoundError,
        JobStoreUnavailableError,
        StorageFullError,
    ),
)
ACCOUNT = Operation(
    tag=_ACCOUNT,
    summary="Get the account",
    answers=(Answer(description="The client of the API key.", type=Account),),
)
WEBHOOK_SECRET = Operation(
    tag=_ACCOUNT,
    summary="Get the webhooks' secret",
    description="Told only where API keys are configured.",
    answers=(Answer(description="The secret that webhooks are signed with.", type=WebhookSecret),),
    errors=(ForbiddenError,),
)
HARDWARE = Operation(
    tag=_ACCOUNT,
    summary="List the hardware",
    answers=(Answer(description="The model's device.", type=list[Hardware]),),
)
