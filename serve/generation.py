"""The pipeline's requests and events. All are frozen, and a value of these types is always valid."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from deployments.engine.adapters import AdapterUse
from deployments.engine.messages import (
    Box,
    Checkpoint,
    EncodedImage,
    ImageFormat,
    ImageParameters,
    LatentShape,
    TokenCount,
    Upscaler,
)
from deployments.engine.model_source import ModelRef
from deployments.engine.prompt_adapters import without_adapters
from deployments.engine.prompt_text import AS_DIFFUSERS, PromptText, Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPicture:
    """The picture that images start from, without its pixels.

    sha256, mask_sha256: of the client's files, in hexadecimal; None for a mask that is no file of its own
    height, width: of the picture in pixels
    crop: the part that is denoised, and the padding that was asked for; None for all of it
    preserve_unmasked: the pixels that the mask keeps are the picture's own
    black_is_repainted, mask_blur, fills_mask: as in Wanted
    """

    sha256: str
    mask_sha256: str | None
    has_mask: bool
    height: int
    width: int
    crop: Box | None = None
    padding_mask_crop: int | None = None
    preserve_unmasked: bool = False
    black_is_repainted: bool = False
    mask_blur: int = 0
    fills_mask: bool = False

    @property
    def is_laid_around(self) -> bool:
        """Whether the picture is laid around each image."""
        return self.crop is not None or self.preserve_unmasked


@dataclass(frozen=True, slots=True, kw_only=True)
class HiresPass:
    """A second pass, which starts from the first one's images in a larger size.

    upscaler: latent enlarges latents, lanczos decoded images; the other fields are as in ImageParameters
    """

    upscaler: Upscaler
    scale: float
    height: int
    width: int
    latent_shape: LatentShape
    strength: float
    num_inference_steps: int
    num_calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest(ImageParameters):
    """An accepted request for one or more images of one prompt.

    model: the served model's name in pictures and jobs
    ref: where the model is; None for the configured one, as in jobs of earlier versions
    pool: the application's name among runners, by its configured model; None in jobs of earlier versions
    warnings: sentences for the client
    negative_prompt: None differs from empty: SDXL uses zeros for None, as diffusers does
    seed: seed of the first image; the others use seed + 1, seed + 2, ...
    num_previews: evenly spaced previews of each unfinished image
    reading: how both texts are read
    adapters, text_adapters: those of the U-Net and those of the text encoders; most are in both
    start: the picture that images start from if they have a strength; hires: the second pass, if there is one
    work_s: device-seconds of denoising all images; None if costs were unknown when it was accepted
    """

    request_id: str
    model: str
    prompt: str
    negative_prompt: str | None
    num_images: int
    image_format: ImageFormat
    num_previews: int = 0
    reading: Reading = AS_DIFFUSERS
    start: StartPicture | None = None
    hires: HiresPass | None = None
    work_s: float | None = None
    text_adapters: tuple[AdapterUse, ...] = ()
    ref: ModelRef | None = None
    pool: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> PromptText:
        """The texts for the text encoders, without the adapters that the prompt names."""
        is_tagged = self.reading.syntax == "a1111"
        return PromptText(
            without_adapters(self.prompt) if is_tagged else self.prompt,
            self.negative_prompt,
            self.needs_negative,
            self.deterministic,
            self.reading,
            self.text_adapters,
        )

    @property
    def passes(self) -> tuple[ImageParameters, ...]:
        """The denoising passes of each image, in order."""
        first = ImageParameters(**self.parameters())
        if self.hires is None:
            return (first,)
        second = replace(
            first,
            height=self.hires.height,
            width=self.hires.width,
            latent_shape=self.hires.latent_shape,
            strength=self.hires.strength,
            num_inference_steps=self.hires.num_inference_steps,
            num_calls=self.hires.num_calls,
        )
        return first, second

    @property
    def steps_per_image(self) -> int:
        """The steps of all passes of an image."""
        return sum(one.num_steps for one in self.passes)

    def steps_before(self, in_pass: int) -> int:
        """The steps of an image's passes before this one."""
        return sum(one.num_steps for one in self.passes[:in_pass])

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the finished images in pixels."""
        if self.start is not None and self.start.crop is not None:
            return self.start.height, self.start.width
        return self.passes[-1].height, self.passes[-1].width

    @property
    def rows_per_image(self) -> int:
        """The most rows that an image has in the U-Net's batch."""
        return 2 if self.needs_negative else 1

    @property
    def needs_negative(self) -> bool:
        """Whether any pass has guidance. A short interval may hit no call of one pass and some of another."""
        return any(one.is_guided for one in self.passes)

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
    """The first event."""

    tokens: TokenCount
    negative_tokens: TokenCount


@dataclass(frozen=True, slots=True)
class ImagePreview:
    """The preview_index-th preview of image image_index, made after `step` steps."""

    image_index: int
    preview_index: int
    step: int
    image: EncodedImage


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """Image image_index has reached a checkpoint. Work before it will not be repeated.

    steps_done: of its steps_per_image
    """

    image_index: int
    checkpoint: Checkpoint
    steps_done: int


@dataclass(frozen=True, slots=True)
class ImageDone:
    image_index: int
    seed: int
    image: EncodedImage


GenerationEvent = PromptEncoded | ImageProgress | ImagePreview | ImageDone
