"""A request's images as requests to the denoiser, one for each pass of each image."""

import math
import uuid
from dataclasses import dataclass

from deployments.engine.messages import (
    Checkpoint,
    DenoiseRequest,
    EncodedPicture,
    ImageParameters,
    PromptEmbeds,
)
from serve.generation import GenerationRequest


@dataclass(frozen=True, slots=True)
class ImagePass:
    """One pass of one image of a request, which the id of a DenoiseRequest names."""

    request_id: str
    index: int
    in_pass: int

    def new_id(self) -> str:
        """A new id. Clients choose request ids and may use one twice at once; the engine's must differ."""
        return f"{self.request_id}/{self.index}/{self.in_pass}/{uuid.uuid4().hex[:8]}"

    @classmethod
    def of_id(cls, denoise_id: str) -> "ImagePass":
        request_id, index, in_pass, _ = denoise_id.rsplit("/", 3)
        return cls(request_id, int(index), int(in_pass))


def denoise_request(
    request: GenerationRequest,
    model: str,
    index: int,
    in_pass: int,
    embeds: PromptEmbeds,
    picture: EncodedPicture | None,
    resume_from: Checkpoint | None,
) -> DenoiseRequest:
    """One pass of one image. model: the digest of its U-Net; picture: what it starts from"""
    parameters = request.passes[in_pass]
    before = request.steps_before(in_pass)
    previews = preview_steps(request.steps_per_image, request.num_previews)
    return DenoiseRequest(
        request_id=ImagePass(request.request_id, index, in_pass).new_id(),
        embeds=embeds,
        model=model,
        picture=picture,
        preview_steps=frozenset(
            step - before for step in previews if 0 < step - before < parameters.num_steps
        ),
        work_s=_work_s(request, parameters),
        resume_from=resume_from,
        **parameters.parameters() | {"seed": request.seed + index},
    )


def preview_steps(num_steps: int, num_previews: int) -> frozenset[int]:
    """Evenly spaced steps before the last one; fewer than requested if there are too few steps."""
    parts = num_previews + 1
    steps = (round(num_steps * part / parts) for part in range(1, parts))
    return frozenset(step for step in steps if 0 < step < num_steps)


def _work_s(request: GenerationRequest, one: ImageParameters) -> float | None:
    """Device-seconds of one image's pass: its part of the request's, by rows and their size."""
    if request.work_s is None:
        return None

    def size(part: ImageParameters) -> float:
        return part.rows_left() * math.prod(part.latent_shape)

    return request.work_s / request.num_images * size(one) / sum(map(size, request.passes))
