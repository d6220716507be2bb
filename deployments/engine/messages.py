"""The values that travel between the stages. All are frozen: what is of such a type is valid."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from deployments.engine.stage_errors import Fault

if TYPE_CHECKING:
    import torch

LatentShape = tuple[int, int]  # height and width of the latents


@dataclass(frozen=True, slots=True)
class PromptEmbeds:
    """A prompt and its negative, encoded, on the CPU in the model's dtype.

    prompt_embeds, negative_prompt_embeds: [tokens, width]; the negative is None without guidance
    pooled_prompt_embeds, negative_pooled_prompt_embeds: likewise, [pooled width], of width 0 but for SDXL
    num_tokens, negative_num_tokens: of the texts as given, start and end tokens included
    max_tokens: how many of them the text encoder reads; the rest were cut off
    """

    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor | None
    pooled_prompt_embeds: torch.Tensor
    negative_pooled_prompt_embeds: torch.Tensor | None
    num_tokens: int
    negative_num_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageParameters:
    """What an image shall be, as far as its denoising is concerned: the fields that whole requests and the
    denoiser's requests for each of their images have in common.

    height, width: in pixels, multiples of the model's scale factor; latent_shape: of the latents
    num_calls: of the model, for all its steps; some samplers call it more than once a step
    guidance_scale: classifier-free guidance as diffusers counts it; at 1 or below there is none
    eta: of samplers that have one, from 0, without fresh noise, to 1; None: as the sampler has it
    deadline: in seconds since the epoch, past which nobody wants it any more; None where the client set none
    priority: each level up halves the time that it will wait while others are served
    """

    height: int
    width: int
    latent_shape: LatentShape
    sampler: str
    num_inference_steps: int
    num_calls: int
    guidance_scale: float
    seed: int
    eta: float | None = None
    deterministic: bool = False
    deadline: float | None = None
    priority: int = 0

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale > 1

    def parameters(self) -> dict[str, Any]:
        """These fields alone, by name."""
        return {field.name: getattr(self, field.name) for field in fields(ImageParameters)}


@dataclass(frozen=True, slots=True)
class DenoiseRequest(ImageParameters):
    """One image to denoise.

    preview_steps: after which steps (counted from 1) it wants to hear of its progress, with a preview
    work_s: device-seconds of all its calls; None where costs are not known yet
    resume_from: where another engine left off; None to begin
    isolated: shares no forward with others before its first checkpoint, since an engine died under it
    """

    request_id: str
    embeds: PromptEmbeds
    preview_steps: frozenset[int] = frozenset()
    work_s: float | None = None
    resume_from: Checkpoint | None = None
    isolated: bool = False

    @property
    def num_rows(self) -> int:
        """Rows of the U-Net's batch that it takes: with guidance, the negative prompt has one too."""
        return 1 if self.embeds.negative_prompt_embeds is None else 2

    @property
    def calls_left(self) -> int:
        """Model calls that are still to come where it begins or goes on."""
        return self.num_calls - (self.resume_from.call if self.resume_from else 0)

    @property
    def work_left_s(self) -> float | None:
        """Device-seconds of those; None where costs are not known yet."""
        return None if self.work_s is None else self.work_s * self.calls_left / self.num_calls


@dataclass(frozen=True, slots=True)
class StepProgress:
    """One of a request's preview_steps is done. preview_latents: the clean latents as estimated by now,
    [C, h, w] float32 on the CPU, scaled."""

    request_id: str
    step: int
    preview_latents: torch.Tensor


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that it takes, beside the request, to go on with an image elsewhere after `step` of its steps.

    call: of the sampler's table, the one that comes next
    state: [slots, C, h, w] float32 on the CPU, those slots that the calls to come read
    """

    request_id: str
    step: int
    call: int
    state: torch.Tensor


@dataclass(frozen=True, slots=True)
class DenoisedLatents:
    """The last event of an image. latents: [C, h, w] float32 on the CPU, still scaled."""

    request_id: str
    latents: torch.Tensor


@dataclass(frozen=True, slots=True)
class DenoiseFailed:
    """The last event of an image that could not be made; the log has it under the request id."""

    request_id: str
    reason: str
    fault: Fault = Fault.BROKEN


DenoiseEvent = StepProgress | Checkpoint | DenoisedLatents | DenoiseFailed
LAST_EVENTS = (DenoisedLatents, DenoiseFailed)


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """What file is wanted: image/png, image/webp or image/jpeg; quality 0 to 100, which PNG has none of."""

    media_type: str = "image/png"
    quality: int | None = None


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A picture as a file."""

    data: bytes
    media_type: str
    height: int
    width: int
