"""The sections `defaults` and `limits` of the configuration."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from deployments.engine.prompt_syntax import problem
from serve.config.schema import MAIN, Section

MIN_SIZE = 64  # pixels, in each direction
MAX_PROMPT_LENGTH = 4000  # characters, of either prompt
MAX_DEADLINE_S = 3600.0
MAX_IMAGE_BYTES = 24 * 2**20  # a body has 32 MiB, and base64 makes a third more of it
_TIMES_OWN_SIZE = 2

Pixels = PositiveInt | Literal["auto"]


class DefaultsConfig(Section):
    """Defaults for requests."""

    width: PositiveInt | None = Field(None, description="Width in pixels; `null`: the model's own")
    height: PositiveInt | None = Field(None, description="Height in pixels; `null`: the model's own")
    sampler: str = Field("DPM++ 2M", description="Name of the sampler", json_schema_extra=MAIN)
    num_inference_steps: PositiveInt = Field(20, description="Denoising steps", json_schema_extra=MAIN)
    guidance_scale: NonNegativeFloat = Field(5.0, description="Classifier-free guidance; up to 1 is none")
    negative_prompt: str | None = Field(
        None, max_length=MAX_PROMPT_LENGTH, description="Negative prompt; `null`: none, as in diffusers"
    )
    prompt_syntax: Literal["plain", "a1111"] = Field(
        "plain", description="Whether brackets in prompts are text, or weights as in A1111"
    )
    long_prompts: Literal["truncate", "chunk"] = Field(
        "truncate",
        description="Whether what the text encoder cannot read at once is cut off, as in diffusers",
    )
    clip_skip: NonNegativeInt | None = Field(
        None,
        description="Last layers of the text encoder that are left out, as diffusers counts; `null`: none",
    )

    @model_validator(mode="after")
    def _check_negative_prompt(self) -> "DefaultsConfig":
        if self.prompt_syntax == "a1111" and (found := problem(self.negative_prompt or "")):
            raise ValueError(f"negative_prompt: {found}")
        return self


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a request for one model, with everything decided."""

    min_size: int
    max_width: int
    max_height: int
    max_pixels: int
    max_num_inference_steps: int
    max_num_images: int
    max_prompt_length: int
    max_deadline_s: float
    max_image_pixels: int
    max_image_bytes: int
    max_prompt_chunks: int


class LimitsConfig(Section):
    """The limits of a request, and of the queue."""

    max_width: Pixels = Field("auto", description="Largest width in pixels; `auto`: twice the model's own")
    max_height: Pixels = Field("auto", description="Largest height in pixels; `auto`: twice the model's own")
    max_pixels: PositiveInt = Field(1024 * 1024, description="Largest width times height, in pixels")
    max_num_inference_steps: PositiveInt = Field(
        100, description="Most denoising steps", json_schema_extra=MAIN
    )
    max_num_images: Annotated[int, Field(ge=1, le=10)] = Field(10, description="Most images of a request")
    # With more, the least common multiple of the rows of a forward would be large.
    max_prompt_chunks: Annotated[int, Field(ge=1, le=3)] = Field(
        3, description="Most chunks of a prompt, of 75 tokens each, that `long_prompts: chunk` reads"
    )
    max_image_pixels: PositiveInt = Field(
        40_000_000, description="Most pixels of a picture to start from, before it is brought to its size"
    )
    max_image_bytes: Annotated[int, Field(ge=1, le=MAX_IMAGE_BYTES)] = Field(
        20 * 2**20, description="Most bytes of a picture to start from"
    )
    max_queue: PositiveInt = Field(
        64,
        description="Most images that an ingress replica has accepted and not finished",
        json_schema_extra=MAIN,
    )
    max_wait_s: PositiveFloat = Field(
        60,
        description="Seconds of accepted work for each denoiser, past which requests are refused; jobs under "
        "way count, waiting jobs do not",
        json_schema_extra=MAIN,
    )

    @model_validator(mode="after")
    def _check_queue(self) -> "LimitsConfig":
        if self.max_queue < self.max_num_images:
            raise ValueError(
                f"max_queue ({self.max_queue}) is less than max_num_images ({self.max_num_images}), "
                "so the largest request could never be accepted"
            )
        return self

    def for_model(self, height: int, width: int) -> Limits:
        """The limits for a model whose own size is this many pixels."""
        return Limits(
            min_size=MIN_SIZE,
            max_width=_TIMES_OWN_SIZE * width if self.max_width == "auto" else self.max_width,
            max_height=_TIMES_OWN_SIZE * height if self.max_height == "auto" else self.max_height,
            max_pixels=self.max_pixels,
            max_num_inference_steps=self.max_num_inference_steps,
            max_num_images=self.max_num_images,
            max_prompt_length=MAX_PROMPT_LENGTH,
            max_deadline_s=MAX_DEADLINE_S,
            max_image_pixels=self.max_image_pixels,
            max_image_bytes=self.max_image_bytes,
            max_prompt_chunks=self.max_prompt_chunks,
        )
