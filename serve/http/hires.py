"""The field `hires` of both dialects: a second pass in a larger size."""

from typing import Annotated

from pydantic import Field

from deployments.engine.messages import Upscaler
from serve.http.body import Body, Whole
from serve.http.field_names import NUM_INFERENCE_STEPS, STRENGTH
from serve.wanted import WantedHires


class HiresBody(Body):
    """A second pass. upscaler: what is enlarged, the image or its latents"""

    scale: Annotated[float, Field(gt=1, le=4)] | None = None
    upscaler: Upscaler | None = None
    strength: Annotated[float, Field(gt=0, le=1)] | None = Field(None, validation_alias=STRENGTH)
    num_inference_steps: Annotated[int, Field(ge=1), Whole] | None = Field(
        None, validation_alias=NUM_INFERENCE_STEPS
    )


def hires_of(body: HiresBody | None) -> WantedHires | None:
    if body is None:
        return None
    return WantedHires(body.scale, body.upscaler, body.strength, body.num_inference_steps)
