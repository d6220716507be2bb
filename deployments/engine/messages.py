"""The messages between the stages. All are frozen, and a value of these types is always valid."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from deployments.engine.adapters import AdapterUse
from deployments.engine.stage_errors import Fault

if TYPE_CHECKING:
    import numpy as np
    import torch

LatentShape = tuple[int, int]  # height and width of the latents
Upscaler = Literal["latent", "lanczos"]  # enlarges latents, or decoded images
Box = tuple[int, int, int, int]  # left, top, right and bottom in pixels, right and bottom excluded


@dataclass(frozen=True, slots=True)
class TokenCount:
    """A text's tokens, start and end included. read: those that are read; the rest is cut off"""

    given: int
    read: int


NO_TOKENS = TokenCount(0, 0)


@dataclass(frozen=True, slots=True)
class PromptEmbeds:
    """An encoded prompt and negative prompt, on the CPU in the model's dtype.

    prompt_embeds, negative_prompt_embeds: [tokens, width]; the negative is None without guidance
    pooled_prompt_embeds, negative_pooled_prompt_embeds: [pooled width], width 0 except for SDXL; the negative
        is None without guidance
    tokens, negative_tokens: of the texts
    """

    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor | None
    pooled_prompt_embeds: torch.Tensor
    negative_pooled_prompt_embeds: torch.Tensor | None
    tokens: TokenCount
    negative_tokens: TokenCount

    @property
    def common_length(self) -> int:
        """The number of tokens to which both texts can be repeated."""
        negative = self.negative_prompt_embeds
        lengths = [len(one) for one in (self.prompt_embeds, negative) if one is not None]
        return math.lcm(*lengths)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to start from, upright and without transparency.

    pixels: [H, W, 3] uint8, or [H, W, 4] with a mask: 255 where it is repainted, and from 128 on
    crop: the part that is denoised; None for all of it
    """

    pixels: np.ndarray
    crop: Box | None = None

    @property
    def has_mask(self) -> bool:
        return bool(self.pixels.shape[2] == 4)


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """A picture to start from, encoded by the VAE. Each image draws its own latents from it.

    mean, std: [C, h, w] float32 on the CPU, of the scaled latents; std None for latents that are exact
    mask: [1, h, w] float32 on the CPU, 1 where it is repainted and 0 where it is kept; None to repaint it all
    masked_mean, masked_std: the same of the picture without what is repainted, for U-Nets that read it
    """

    mean: torch.Tensor
    std: torch.Tensor | None
    mask: torch.Tensor | None = None
    masked_mean: torch.Tensor | None = None
    masked_std: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageParameters:
    """The parameters of an image that concern its denoising. Whole requests and the denoiser's requests for
    each image share them.

    height, width: in pixels, multiples of the model's scale factor; latent_shape: of the latents
    num_calls: model calls for all its steps; some samplers call the model more than once per step
    strength: the share of the steps that is done, above 0 and up to 1, if it starts from a picture; else None
    guidance_scale: classifier-free guidance as diffusers counts it; there is none at 1 or below
    guidance_start, guidance_end: the part of the model calls that has guidance, as fractions of all
    guidance_rescale: how far guided outputs get back the spread of the prompt's, from 0 to 1, as in diffusers
    eta: 0 (no fresh noise) to 1, for samplers that have it; None for the sampler's default
    deadline: in seconds since the epoch; the image is useless later. None if the client set none
    priority: each level up halves the time that the request waits while others are served
    adapters: each adapter once
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
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    guidance_rescale: float = 0.0
    strength: float | None = None
    deterministic: bool = False
    deadline: float | None = None
    priority: int = 0
    adapters: tuple[AdapterUse, ...] = ()

    @property
    def num_steps(self) -> int:
        """The steps that are done: all of them, or the last ones if it starts from a picture."""
        return steps_from_picture(self.num_inference_steps, self.strength)

    @property
    def guided_calls(self) -> range:
        """The model calls with guidance, counted from 0: those from the start on and before the end."""
        if self.guidance_scale <= 1:
            return range(0)
        # Rounded, because 0.07 * 100 is slightly more than 7.
        ends = (round(part * self.num_calls, 6) for part in (self.guidance_start, self.guidance_end))
        return range(*map(math.ceil, ends))

    @property
    def is_guided(self) -> bool:
        return len(self.guided_calls) > 0

    def rows_at(self, call: int) -> int:
        """Rows of an image in the U-Net's batch at a model call: one, or two with guidance, for the negative
        prompt."""
        return 2 if call in self.guided_calls else 1

    def calls_by_rows(self, first_call: int = 0) -> dict[int, int]:
        """The number of an image's model calls from first_call on, by their rows."""
        guided = self.guided_calls
        num_guided = len(range(max(first_call, guided.start), guided.stop))
        return {2: num_guided, 1: self.num_calls - first_call - num_guided}

    def rows_left(self, first_call: int = 0) -> int:
        """The rows of all an image's model calls from first_call on."""
        return sum(rows * calls for rows, calls in self.calls_by_rows(first_call).items())

    def parameters(self) -> dict[str, Any]:
        """Only these fields, by name."""
        return {field.name: getattr(self, field.name) for field in fields(ImageParameters)}


def steps_from_picture(num_inference_steps: int, strength: float | None) -> int:
    """The steps that are done at a strength; all without one. Rounded as in diffusers' pipelines."""
    if strength is None:
        return num_inference_steps
    return min(int(num_inference_steps * strength), num_inference_steps)


@dataclass(frozen=True, slots=True)
class DenoiseRequest(ImageParameters):
    """One image to denoise.

    model: the digest of its U-Net; an engine with one model reads none
    picture: what it starts from if it has a strength
    preview_steps: steps (counted from 1) after which a preview is sent
    work_s: device-seconds of all its calls; None while costs are unknown
    resume_from: a checkpoint of another engine; None to begin
    isolated: shares no forward before its first checkpoint, because an engine died under it
    """

    request_id: str
    embeds: PromptEmbeds
    model: str = ""
    picture: EncodedPicture | None = None
    preview_steps: frozenset[int] = frozenset()
    work_s: float | None = None
    resume_from: Checkpoint | None = None
    isolated: bool = False

    @property
    def first_call(self) -> int:
        """The model call that is made first: the checkpoint's or 0."""
        return self.resume_from.call if self.resume_from else 0

    @property
    def work_left_s(self) -> float | None:
        """Device-seconds of the calls that are left; None while costs are unknown."""
        if self.work_s is None:
            return None
        return self.work_s * self.rows_left(self.first_call) / self.rows_left()


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A request has done one of its preview_steps. preview_latents: the current estimate of the clean
    latents, [C, h, w] float32 on the CPU, scaled."""

    request_id: str
    step: int
    preview_latents: torch.Tensor


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What another engine needs besides the request to continue an image after `step` of its steps.

    call: the index in the sampler's table of the next call
    state: [slots, C, h, w] float32 on the CPU, the slots that later calls read
    in_pass: which of its image's passes the request is; the engine does not know it
    """

    request_id: str
    step: int
    call: int
    state: torch.Tensor
    in_pass: int = 0


@dataclass(frozen=True, slots=True)
class DenoisedLatents:
    """The last event of an image. latents: [C, h, w] float32 on the CPU, still scaled."""

    request_id: str
    latents: torch.Tensor


@dataclass(frozen=True, slots=True)
class DenoiseFailed:
    """The last event of an image that could not be made. The log has details under the request id."""

    request_id: str
    reason: str
    fault: Fault = Fault.BROKEN


DenoiseEvent = StepProgress | Checkpoint | DenoisedLatents | DenoiseFailed
LAST_EVENTS = (DenoisedLatents, DenoiseFailed)


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """The wanted file type: image/png, image/webp or image/jpeg. quality: 0 to 100; PNG has none."""

    media_type: str = "image/png"
    quality: int | None = None


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A picture as a file."""

    data: bytes
    media_type: str
    height: int
    width: int
