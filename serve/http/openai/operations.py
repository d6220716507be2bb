"""What the routes of OpenAI's dialect do, for the OpenAPI document."""

from serve.errors import (
    AdapterNotFoundError,
    AdapterUnavailableError,
    AdapterUnusableError,
    DeadlineTooEarlyError,
    DeadlineTooEarlyNowError,
    ForbiddenError,
    ImageTooLargeError,
    InvalidRequestError,
    ModelNotFoundError,
    ModelUnloadableError,
    NotFiniteError,
    NotReadyError,
    ObjectStoreUnavailableError,
    OutOfDeviceMemoryError,
    PoisonousRequestError,
    QueueFullError,
    RateLimitError,
    StorageFullError,
    UnsupportedImageError,
)
from serve.http.openai import answering
from serve.http.openai.answering import Kind
from serve.http.openai.answers import CompletedImage, Images, Model, Models, PartialImage
from serve.http.openai.edit_schema import EditForm, EditsBody, VariationsBody
from serve.http.openai.schema import ImagesBody
from serve.http.operations import EVENT_STREAM, EXAMPLE_PICTURE, Answer, Operation
from serve.http.problems import ErrorEvent

_MODELS = "Models (OpenAI)"

_ERRORS = (
    InvalidRequestError,
    ModelNotFoundError,
    ModelUnloadableError,
    AdapterNotFoundError,
    AdapterUnavailableError,
    AdapterUnusableError,
    ForbiddenError,
    NotReadyError,
    DeadlineTooEarlyError,
    DeadlineTooEarlyNowError,
    QueueFullError,
    RateLimitError,
    NotFiniteError,
    ObjectStoreUnavailableError,
    PoisonousRequestError,
    OutOfDeviceMemoryError,
    StorageFullError,
)
_OF_PICTURES = (UnsupportedImageError, ImageTooLargeError)


def _answers(kind: Kind) -> tuple[Answer, ...]:
    return (
        Answer(description="All images.", type=Images),
        Answer(
            description="With `stream`, each image as soon as it is there, and its previews before it.",
            media_types=(EVENT_STREAM,),
            events={
                kind.partial: PartialImage,
                kind.completed: CompletedImage,
                "error": ErrorEvent,
            },
        ),
    )


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
    answers=_answers(answering.GENERATION),
    errors=_ERRORS,
)
EDIT = Operation(
    tag="Images (OpenAI)",
    summary="Make images from a picture",
    description="Starts from `image`: a file in a form, a URL, or a data URL. `strength` says how much of "
    "it is made anew. With a `mask` of the same size only what is transparent in it is repainted, or what is "
    "white if nothing is transparent; without one, what is transparent in the picture. PNG, JPEG and WebP.",
    body=EditsBody,
    form=EditForm,
    examples={
        "plain": {"prompt": "a red star on a blue background", "image": EXAMPLE_PICTURE, "strength": 0.6},
    },
    answers=_answers(answering.EDIT),
    errors=(*_ERRORS, *_OF_PICTURES),
)
VARY = Operation(
    tag="Images (OpenAI)",
    summary="Make variations of a picture",
    description="The same as an edit, and the prompt may be left out.",
    body=VariationsBody,
    form=EditForm,
    examples={"plain": {"image": EXAMPLE_PICTURE, "n": 2}},
    answers=_answers(answering.EDIT),
    errors=(*_ERRORS, *_OF_PICTURES),
)

MODELS = Operation(tag=_MODELS, summary="List the models", answers=[Answer(description="All.", type=Models)])
MODEL = Operation(
    tag=_MODELS,
    summary="Get a model",
    answers=[Answer(description="The model.", type=Model)],
    errors=[ModelNotFoundError],
)
