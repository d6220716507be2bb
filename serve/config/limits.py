"""The sections `defaults` and `limits` of the configuration."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from serve.config.schema import Section


class DefaultsConfig(Section):
    """What a request that does not say gets."""

    width: PositiveInt | None = Field(None, description="pixels; the model's own size if not set")
    height: PositiveInt | None = Field(None, description="pixels; the model's own size if not set")
    sampler: str = Field("DPM++ 2M", description="see Samplers")
    num_inference_steps: PositiveInt = Field(20, description="denoising steps")
    guidance_scale: NonNegativeFloat = Field(5.0, description="classifier-free guidance; 1 and less is none")


class LimitsConfig(Section):
    """What a request may ask for."""

    min_size: PositiveInt = Field(64, description="pixels, each way")
    max_width: PositiveInt = Field(1024, description="pixels")
    max_height: PositiveInt = Field(1024, description="pixels")
    max_pixels: PositiveInt = Field(1024 * 1024, description="width times height")
    max_num_inference_steps: PositiveInt = Field(100, description="denoising steps")
    max_num_images: Annotated[int, Field(ge=1, le=10)] = Field(10, description="images of a request (`n`)")
    max_prompt_length: Annotated[int, Field(ge=1, le=32000)] = Field(
        4000, description="characters, of either prompt"
    )
    max_queue: PositiveInt = Field(
        64, description="images that an ingress replica has accepted and not finished"
    )
    max_wait_s: PositiveFloat = Field(
        60,
        description="seconds of work for each denoiser, accepted and not finished, past which requests are "
        "refused; jobs under way count, those that wait do not",
    )
    max_deadline_s: PositiveFloat = Field(3600, description="seconds, the largest `deadline_s`")

    @model_validator(mode="after")
    def _check_queue(self) -> "LimitsConfig":
        if self.max_queue < self.max_num_images:
            raise ValueError(
                f"max_queue ({self.max_queue}) is less than max_num_images ({self.max_num_images}), "
                "so the largest request could never be accepted"
            )
        return self
