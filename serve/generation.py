"""What is asked of the pipeline and what comes out of it. All are frozen: what is of such a type is valid."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from deployments.engine.messages import Checkpoint, EncodedImage, ImageFormat, ImageParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest(ImageParameters):
    """An accepted request for one or more images of one prompt.

    model: the served model's name, as pictures and jobs show it
    negative_prompt: None is not the same as empty: SDXL answers None with zeros, as diffusers does
    seed: of the first image; the others take seed + 1, seed + 2, ...
    num_previews: previews of each image on its way, evenly spaced
    work_s: device-seconds of denoising all images; None where costs were not known when it was accepted
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
        """Rows of the U-Net's batch: with guidance, the negative prompt has one too."""
        return 2 if self.is_guided else 1

    @property
    def num_rows(self) -> int:
        """Rows of all its images."""
        return self.num_images * self.rows_per_image


@dataclass(frozen=True, slots=True)
class Resume:
    """Where to go on with a request: the images that are done, and checkpoints of those that were begun."""

    done: frozenset[int] = frozenset()
    checkpoints: Mapping[int, Checkpoint] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptEncoded:
    """The first event. Of the tokens that either text has the model reads no more than max_tokens."""

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
    """Image image_index has come to its checkpoint; what is behind that will not be done again."""

    image_index: int
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class ImageDone:
    image_index: int
    seed: int
    image: EncodedImage


GenerationEvent = PromptEncoded | ImageProgress | ImagePreview | ImageDone
