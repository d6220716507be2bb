"""What the routes of OpenAI's dialect do, for the OpenAPI document."""

from serve.errors import (
    DeadlineTooEarlyError,
    DeadlineTooEarlyNowError,
    InvalidRequestError,
    ModelNotFoundError,
    NotFiniteError,
    ObjectStoreUnavailableError,
    OutOfDeviceMemoryError,
    PoisonousRequestError,
    QueueFullError,
    RateLimitError,
    StorageFullError,
)
from serve.http.openai.answers import CompletedImage, Images, Model, Models, PartialImage
from serve.http.openai.schema import ImagesBody
from serve.http.operations import EVENT_STREAM, Answer, Operation
from serve.http.problems import ErrorEvent

_MODELS = "Models (OpenAI)"

GENERATE = Operation(
    tag="Images (OpenAI)",
    summary="Make images",
    description="Waits for all images, or streams them and previews of them with `stream`. A stream that "
    "fails ends with an `error` event.",
    body=ImagesBody,
    examples={
        "plain": {"prompt": "a red star on a blue background", "num_inference_steps": 8, "seed": 1},
        "streamed": {"prompt": "a green circle", "n": 2, "stream": True, "partial_images": 1},
    },
    answers=(
        Answer(description="All images.", type=Images),
        Answer(
            description="With `stream`, each image as soon as it is there, and its previews before it.",
            media_types=(EVENT_STREAM,),
            events={
                "image_generation.partial_image": PartialImage,
                "image_generation.completed": CompletedImage,
                "error": ErrorEvent,
            },
        ),
    ),
    errors=(
        InvalidRequestError,
        ModelNotFoundError,
        DeadlineTooEarlyError,
        DeadlineTooEarlyNowError,
        QueueFullError,
        RateLimitError,
        NotFiniteError,
        ObjectStoreUnavailableError,
        PoisonousRequestError,
        OutOfDeviceMemoryError,
        StorageFullError,
        ObjectStoreUnavailableError,
    ),
)

MODELS = Operation(tag=_MODELS, summary="List the models", answers=[Answer(description="All.", type=Models)])
MODEL = Operation(
    tag=_MODELS,
    summary="Get a model",
    answers=[Answer(description="The model.", type=Model)],
    errors=[ModelNotFoundError],
)
