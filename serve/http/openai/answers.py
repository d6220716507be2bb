"""The types of answers in OpenAI's dialect, for the code that makes them and for the OpenAPI document."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from serve.http.replicate.answers import ReplicateModel

OutputFormat = Literal["png", "webp", "jpeg"]
Timestamp = Annotated[int, Field(description="Seconds since the epoch.")]
Base64 = Annotated[str, Field(description="The image file, in base64.")]


class Description(TypedDict):
    """How an image was made."""

    model: str
    size: Annotated[str, Field(examples=["128x128"])]
    background: str
    output_format: OutputFormat
    sampler: str
    num_inference_steps: int
    guidance_scale: float
    warnings: NotRequired[
        Annotated[list[str], Field(description="What was done otherwise than asked, in sentences.")]
    ]


class TokenDetails(TypedDict):
    text_tokens: int
    image_tokens: int


class Usage(TypedDict):
    """The prompt's tokens that the model has read. Images are not counted in tokens."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: TokenDetails


class Image(TypedDict):
    b64_json: NotRequired[Base64]
    url: NotRequired[
        Annotated[
            str,
            Field(description="The image's URL, which needs no key.", json_schema_extra={"format": "uri"}),
        ]
    ]
    seed: Annotated[int, Field(description="The seed that makes this image again.")]


class Images(Description):
    """All images of a request, in the order of their seeds."""

    created: Timestamp
    data: list[Image]
    usage: Usage


class PartialImage(Description):
    """A preview of an unfinished image."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    b64_json: Base64
    created_at: Timestamp
    partial_image_index: int
    image_index: int
    step: Annotated[int, Field(description="Denoising steps that are done.")]


class CompletedImage(Description):
    """A finished image."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    b64_json: Base64
    created_at: Timestamp
    image_index: int
    seed: int
    usage: Usage


class ModelDefaults(TypedDict):
    """What holds for requests that do not say otherwise."""

    sampler: str
    num_inference_steps: int
    guidance_scale: float
    width: int
    height: int
    negative_prompt: str | None


class ModelLimits(TypedDict):
    """The limits of a request. Sizes are in pixels."""

    min_size: Annotated[int, Field(description="Of width and height.")]
    max_width: int
    max_height: int
    max_pixels: Annotated[int, Field(description="Of width times height.")]
    size_multiple: Annotated[int, Field(description="Width and height are multiples of it.")]
    max_num_inference_steps: int
    max_num_images: int
    max_prompt_length: Annotated[int, Field(description="Characters of either prompt.")]


class Model(TypedDict):
    """A served model."""

    id: str
    object: Literal["model"]
    created: Timestamp
    owned_by: str
    device: Annotated[str, Field(description="What it runs on.", examples=["cpu", "cuda"])]
    aliases: Annotated[list[str], Field(description="Other names that requests may use.")]
    family: Annotated[str, Field(description="`sd1`, `sd2` or `sdxl`.", examples=["sdxl"])]
    size_bytes: Annotated[int | None, Field(description="Size of its files; null if it is not known.")]
    is_resident: Annotated[bool, Field(description="Whether it is loaded. If not, an image takes longer.")]
    needs_mask: Annotated[bool, Field(description="Whether it only repaints pictures where a mask says so.")]
    default_width: Annotated[int, Field(description="Width of its images in pixels, if none is asked for.")]
    default_height: Annotated[int, Field(description="Height of its images in pixels, likewise.")]
    samplers: Annotated[list[str], Field(description="The samplers that requests can name.")]
    defaults: ModelDefaults
    limits: ModelLimits


class Models(TypedDict):
    """All served models."""

    object: Literal["list"]
    data: list[Model]
    next: None
    previous: None
    results: Annotated[list[ReplicateModel], Field(description="The same, for Replicate's clients.")]
