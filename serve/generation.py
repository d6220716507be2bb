"""The pipeline's requests and events. All are frozen, and a value of these types is always valid."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from deployments.engine.messages import Checkpoint, EncodedImage, ImageFormat, ImageParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest(ImageParameters):
    """An accepted request for one or more images of one prompt.

    model: the served model's name in pictures and jobs
    negative_prompt: None differs from empty: SDXL uses zeros for None, as diffusers does
    seed: seed of the first image; the others use seed + 1, seed + 2, ...
    num_previews: evenly spaced previews of each unfinished image
    work_s: device-seconds of denoising all images; None if costs were unknown when it was accepted
    """

    request_id: str
    model: str
    prompt: str
    negative_prompt: str | None
    num_images: int
    image_format: ImageFormat
    num_previews: int = 0
    work_s: float | None = None

    @property
    def rows_per_image(self) -> int:
        """The most rows that an image has in the U-Net's batch."""
        return 2 if self.is_guided else 1

    @property
    def num_rows(self) -> int:
        """The most rows of all its images."""
        return self.num_images * self.rows_per_image


@dataclass(frozen=True, slots=True)
class Resume:
    """Where to resume a request: the finished images, and checkpoints of begun ones."""

    done: frozenset[int] = frozenset()
    checkpoints: Mapping[int, Checkpoint] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptEncoded:
    """The first event. The model reads at most max_tokens of each text's tokens."""

    num_tokens: int
    negative_num_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class ImagePreview:
    """The preview_index-th preview of image image_index, made after `step` steps."""

    image_index: int
    preview_index: int
    step: int
    image: EncodedImage


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """Image image_index has reached a checkpoint. Work before it will not be repeated."""

    image_index: int
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class ImageDone:
    image_index: int
    seed: int
    image: EncodedImage


GenerationEvent = PromptEncoded | ImageProgress | ImagePreview | ImageDone
