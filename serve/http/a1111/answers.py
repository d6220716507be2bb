"""The types of answers in A1111's dialect, for the code that makes them and for the OpenAPI document."""

from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

Base64 = Annotated[str, Field(description="The image file, in base64.")]
Warnings = Annotated[list[str], Field(description="What changed nothing, or was done otherwise than asked.")]


class Images(TypedDict):
    """What txt2img and img2img answer."""

    images: Annotated[list[Base64], Field(description="In the order of their seeds.")]
    parameters: Annotated[dict[str, Any], Field(description="The fields of the request.")]
    info: Annotated[
        str, Field(description="JSON with `seed`, `all_seeds`, `infotexts` and more, as A1111 has it.")
    ]
    warnings: NotRequired[Warnings]


class State(TypedDict):
    """What is being done. All images of a request are made at once, so there is one job."""

    skipped: bool
    interrupted: bool
    stopping_generation: bool
    job: str
    job_count: int
    job_timestamp: str
    job_no: int
    sampling_step: int
    sampling_steps: int


class Progress(TypedDict):
    """How far the client's newest running request is."""

    progress: Annotated[float, Field(description="From 0 to 1; 0 if nothing runs.")]
    eta_relative: Annotated[float, Field(description="Seconds that are left, as far as is known.")]
    state: State
    current_image: Annotated[str | None, Field(description="The latest preview: a JPEG file, in base64.")]
    textinfo: str | None


class PngInfo(TypedDict):
    """What a picture's file says of how it was made."""

    info: Annotated[str, Field(description="The text itself; empty if there is none.")]
    items: Annotated[dict[str, Any], Field(description="The file's other texts.")]
    parameters: Annotated[dict[str, Any], Field(description="The text, read.")]


class OptionsChanged(TypedDict):
    warnings: Warnings


class ModelItem(TypedDict):
    """A model. title: what `sd_model_checkpoint` names; hash, sha256: not known here"""

    title: str
    model_name: str
    hash: str | None
    sha256: str | None
    filename: str
    config: str | None


class SamplerItem(TypedDict):
    name: str
    aliases: list[str]
    options: dict[str, str]


class SchedulerItem(TypedDict):
    name: str
    label: str
    aliases: list[str] | None
    default_rho: float
    need_inner_model: bool


class UpscalerItem(TypedDict):
    name: str
    model_name: str | None
    model_path: str | None
    model_url: str | None
    scale: float


class NameItem(TypedDict):
    name: str


class LoraItem(TypedDict):
    """An adapter. name: for the prompt, as in <lora:name:0.8>"""

    name: str
    alias: str
    path: str
    metadata: dict[str, Any]


class EmbeddingItem(TypedDict):
    """A textual inversion. shape: values per vector"""

    step: int | None
    sd_checkpoint: str | None
    sd_checkpoint_name: str | None
    shape: int
    vectors: int


class Embeddings(TypedDict):
    loaded: dict[str, EmbeddingItem]
    skipped: dict[str, EmbeddingItem]


class Scripts(TypedDict):
    txt2img: list[str]
    img2img: list[str]


class Memory(TypedDict):
    """ram: of the machine with the HTTP server, in bytes; cuda: not known there"""

    ram: dict[str, int]
    cuda: dict[str, str]
