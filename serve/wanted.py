"""A client's request, as all dialects say it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deployments.engine.messages import Upscaler
from deployments.engine.prompt_text import Syntax
from serve.errors import InvalidRequestError

LongPrompts = Literal["truncate", "chunk"]


@dataclass(frozen=True, slots=True)
class WantedHires:
    """A second pass; None for what is left out. scale: of both sides"""

    scale: float | None = None
    upscaler: Upscaler | None = None
    strength: float | None = None
    num_inference_steps: int | None = None


@dataclass(frozen=True, slots=True)
class FetchedAdapter:
    """An adapter that came from elsewhere. name: without what may be secret; digest: the file's SHA-256"""

    name: str
    path: Path
    digest: str


@dataclass(frozen=True, slots=True)
class WantedAdapter:
    """An adapter that a request names.

    name: its id, or where it is elsewhere; field: the dialect's field that names it, for errors
    scale: what its effect is multiplied by; text_scale: in the text encoders, None for the same
    sha256: of the file that is meant, in hexadecimal; None for whichever has the name
    fetched: its file, if it is elsewhere
    """

    name: str
    scale: float
    field: str
    text_scale: float | None = None
    sha256: str | None = None
    fetched: FetchedAdapter | None = None

    def refusal(self, sentence: str) -> InvalidRequestError:
        """The error for an adapter that cannot be used."""
        return InvalidRequestError(f"{self.field}: {sentence}.", self.field)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A client's request, well-formed; None for fields that it left out.

    loras: besides those that the prompt names
    image, mask: files; transparent_is_repainted: in them, as OpenAI does it, and not what is white
    black_is_repainted: in the mask, and not what is white; mask_blur: standard deviation in pixels, by which
        the mask's edges are softened; fills_mask: what is repainted starts from the colours around it
    came_at: in seconds since the epoch; deadlines count from then on
    names: the dialect's names of fields that it calls differently, for answers
    """

    prompt: str
    model: str | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_start: float | None = None
    guidance_end: float | None = None
    guidance_rescale: float | None = None
    sampler: str | None = None
    eta: float | None = None
    seed: int | None = None
    num_images: int | None = None
    deterministic: bool | None = None
    output_format: Literal["png", "webp", "jpeg", "jpg"] | None = None
    output_quality: int | None = None
    num_previews: int | None = None
    deadline_s: float | None = None
    priority: int | None = None
    prompt_syntax: Syntax | None = None
    long_prompts: LongPrompts | None = None
    clip_skip: int | None = None
    image: bytes | None = None
    mask: bytes | None = None
    strength: float | None = None
    padding_mask_crop: int | None = None
    preserve_unmasked: bool | None = None
    transparent_is_repainted: bool = False
    black_is_repainted: bool = False
    mask_blur: int = 0
    fills_mask: bool = False
    hires: WantedHires | None = None
    loras: tuple[WantedAdapter, ...] = ()
    needs_prompt: bool = True
    came_at: float = field(default_factory=time.time)
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def deadline(self) -> float | None:
        """In seconds since the epoch."""
        return None if self.deadline_s is None else self.came_at + self.deadline_s

    def name(self, field: str) -> str:
        """The dialect's name of a field."""
        return self.names.get(field, field)

    def refusal(self, field: str, sentence: str) -> InvalidRequestError:
        """The error for a field whose value cannot be served."""
        name = self.name(field)
        return InvalidRequestError(f"{name}: {sentence}.", name)

    def check_at_most(self, field: str, given: float, limit: float, unit: str = "") -> None:
        """Raises InvalidRequestError if the value is above the limit."""
        if given > limit:
            raise self.refusal(field, f"{given}{unit} were given; at most {limit}{unit} are allowed")


def is_url(name: str) -> bool:
    """Whether an adapter's name says where it is on the web."""
    return name.startswith(("https://", "http://"))


def shown(value: object) -> str:
    """A client's value, cut to fit into a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
