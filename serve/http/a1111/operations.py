"""What the routes of A1111's dialect do, for the OpenAPI document."""

from typing import Any

from serve.errors import (
    AdapterNotFoundError,
    AdapterUnavailableError,
    AdapterUnusableError,
    InvalidInputError,
    JobStoreUnavailableError,
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
)
from serve.http.a1111.answers import (
    Embeddings,
    Images,
    LoraItem,
    Memory,
    ModelItem,
    NameItem,
    OptionsChanged,
    PngInfo,
    Progress,
    SamplerItem,
    SchedulerItem,
    Scripts,
    UpscalerItem,
)
from serve.http.a1111.bodies import Img2ImgBody, PngInfoBody, Txt2ImgBody
from serve.http.a1111.settings import SettingsBody
from serve.http.operations import EXAMPLE_PICTURE, Answer, Operation, Parameter

_TAG = "AUTOMATIC1111"
_ERRORS = (
    InvalidInputError,
    ModelNotFoundError,
    ModelUnloadableError,
    AdapterNotFoundError,
    AdapterUnavailableError,
    AdapterUnusableError,
    NotReadyError,
    QueueFullError,
    RateLimitError,
    NotFiniteError,
    JobStoreUnavailableError,
    ObjectStoreUnavailableError,
    PoisonousRequestError,
    OutOfDeviceMemoryError,
    StorageFullError,
)
_TAKEN = (
    "Other fields of A1111 and its extensions are taken where they ask for nothing, refused where they would "
    "change the picture, and named in `warnings` where they are not known."
)
TXT2IMG = Operation(
    tag=_TAG,
    summary="Make images from a prompt",
    description=_TAKEN,
    body=Txt2ImgBody,
    examples={
        "plain": {"prompt": "a (red:1.2) star on a blue background", "steps": 8, "seed": 1},
        "second pass": {"prompt": "a green circle", "width": 64, "height": 64, "steps": 4, "enable_hr": True},
    },
    answers=(Answer(description="All images.", type=Images),),
    errors=_ERRORS,
)
IMG2IMG = Operation(
    tag=_TAG,
    summary="Make images from a picture",
    description=f"With a `mask`, what is white in it is repainted. {_TAKEN}",
    body=Img2ImgBody,
    examples={
        "plain": {"prompt": "a red star", "init_images": [EXAMPLE_PICTURE], "denoising_strength": 0.6},
    },
    answers=(Answer(description="All images.", type=Images),),
    errors=_ERRORS,
)
PROGRESS = Operation(
    tag=_TAG,
    summary="Get the progress",
    description="Of the client's newest running request. Each ingress replica knows its own requests.",
    parameters=(
        Parameter(
            name="skip_current_image",
            place="query",
            description="`true` leaves out the preview.",
            example="true",
        ),
    ),
    answers=(Answer(description="The progress.", type=Progress),),
)
_NOTHING_BACK = (Answer(description="Done.", type=dict[str, Any]),)
INTERRUPT = Operation(
    tag=_TAG,
    summary="End the client's running requests",
    description="They answer with the images that are done, and with the previews of the others.",
    answers=_NOTHING_BACK,
)
SKIP = Operation(tag=_TAG, summary="End the client's newest running request", answers=_NOTHING_BACK)
OPTIONS = Operation(
    tag=_TAG,
    summary="Get the client's options",
    answers=(Answer(description="All options.", type=dict[str, Any]),),
    errors=(JobStoreUnavailableError,),
)
SET_OPTIONS = Operation(
    tag=_TAG,
    summary="Set options of the client",
    description="They hold for all its requests, and last. Without API keys there is one client.",
    body=SettingsBody,
    examples={"model": {"sd_model_checkpoint": "shapes"}},
    answers=(Answer(description="Null, or warnings.", type=OptionsChanged | None),),
    errors=(
        InvalidInputError,
        ModelNotFoundError,
        NotReadyError,
        JobStoreUnavailableError,
        StorageFullError,
    ),
)
PNG_INFO = Operation(
    tag=_TAG,
    summary="Read how a picture was made",
    description="From the text `parameters` of a PNG, or the comment of a JPEG or WebP.",
    body=PngInfoBody,
    examples={"plain": {"image": EXAMPLE_PICTURE}},
    answers=(Answer(description="What the file says.", type=PngInfo),),
    errors=(InvalidInputError,),
)


def _listed(summary: str, of: Any) -> Operation:
    return Operation(tag=_TAG, summary=summary, answers=(Answer(description="All.", type=of),))


SD_MODELS = _listed("List the models", list[ModelItem])
SAMPLERS = _listed("List the samplers", list[SamplerItem])
SCHEDULERS = _listed("List the noise levels of samplers", list[SchedulerItem])
UPSCALERS = _listed("List what enlarges images", list[UpscalerItem])
LATENT_UPSCALE_MODES = _listed("List what enlarges latents", list[NameItem])
LORAS = _listed("List the adapters", list[LoraItem])
EMBEDDINGS = Operation(
    tag=_TAG,
    summary="List the textual inversions",
    description="Those of the client's model.",
    answers=(Answer(description="All.", type=Embeddings),),
    errors=(JobStoreUnavailableError,),
)
SCRIPTS = _listed("List the scripts, of which there are none", Scripts)
CMD_FLAGS = _listed("Get what A1111's command line would say", dict[str, Any])
MEMORY = _listed("Get the memory", Memory)
NONE = _listed("List what is not here", list[Any])
NOTHING = Operation(
    tag=_TAG,
    summary="Do what happens here by itself",
    answers=(Answer(description="Done.", type=dict[str, Any]),),
)
