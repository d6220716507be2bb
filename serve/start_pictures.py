"""Pictures to start from, as clients send them: read with suspicion, and brought into one form.

Pillow decodes them here, in the process that took them in, and nothing else ever sees the files. It lets
other threads run meanwhile.
"""

import hashlib
import io
import logging
import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from deployments.engine.fit_picture import REPAINTED, fit_picture, join_mask, on_white
from deployments.engine.messages import Box, Picture
from serve.config.limits import Limits
from serve.errors import ImageTooLargeError, UnsupportedImageError
from serve.generation import StartPicture
from serve.mask_fill import filled
from serve.wanted import Wanted

logger = logging.getLogger("ray.serve")

FORMATS = ("PNG", "JPEG", "WEBP")
# Pillow's own limit would warn before ours refuses.
Image.MAX_IMAGE_PIXELS = None
# A JPEG's scans are decoded one after another, each over the whole picture, and a small file may have many
# thousands. Cameras and programs write about ten.
_MAX_SCANS = 100
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # not what only looks like one in a scan
MAX_CROPPED_PIXELS = 4096 * 4096  # of a picture that is laid around a repainted crop
_WIDE_MODE = "I"  # more than eight bits; Pillow would cut their values off at 255


@dataclass(frozen=True, slots=True)
class OpenedPicture:
    """A client's picture, decoded, upright and in RGB; and its mask in grey, white where it is repainted."""

    image: Image.Image
    mask: Image.Image | None
    sha256: str
    mask_sha256: str | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.height, self.image.width

    def fitted(
        self, height: int, width: int, crop: Box | None, wanted: Wanted
    ) -> tuple[StartPicture, Picture]:
        """Brought to a size in pixels. A picture with a crop keeps its own size."""
        if crop is None:
            picture = fit_picture(self.image, self.mask, height, width)
        else:
            assert self.mask is not None, "a crop is around a mask"
            picture = replace(join_mask(self.image, _only_within(self.mask, crop)), crop=crop)
        if picture.has_mask and picture.pixels[:, :, 3].max() < REPAINTED:
            raise wanted.refusal(
                "mask" if wanted.mask else "image",
                f"what is to be repainted is too small; at {width}x{height} pixels nothing of it is left",
            )
        if wanted.fills_mask and picture.has_mask:
            picture = filled(picture)
        start = StartPicture(
            sha256=self.sha256,
            mask_sha256=self.mask_sha256,
            has_mask=self.mask is not None,
            height=picture.pixels.shape[0],
            width=picture.pixels.shape[1],
            crop=crop,
            padding_mask_crop=wanted.padding_mask_crop,
            preserve_unmasked=bool(wanted.preserve_unmasked),
            black_is_repainted=wanted.black_is_repainted,
            mask_blur=wanted.mask_blur,
            fills_mask=wanted.fills_mask,
        )
        return start, picture


def open_picture(wanted: Wanted, limits: Limits) -> OpenedPicture:
    """Decodes the picture and its mask. Raises InvalidRequestError, which names the field."""
    assert wanted.image is not None, "only requests with a picture have one to open"
    given = _decoded(wanted, "image", wanted.image, limits)
    image, mask, mask_sha256 = on_white(given), None, None
    if wanted.mask is not None:
        mask = _mask(_decoded(wanted, "mask", wanted.mask, limits), wanted.transparent_is_repainted)
        if wanted.black_is_repainted:
            mask = ImageOps.invert(mask)
        mask_sha256 = _sha256(wanted.mask)
        if mask.size != image.size:
            raise wanted.refusal(
                "mask",
                f"has {mask.width}x{mask.height} pixels, but the picture has {image.width}x{image.height}",
            )
        if not _is_any_repainted(mask):
            what = "transparent or white" if wanted.transparent_is_repainted else "white"
            what = "black" if wanted.black_is_repainted else what
            raise wanted.refusal("mask", f"nothing of it is {what}, so nothing would be repainted")
        if wanted.mask_blur:
            mask = mask.filter(ImageFilter.GaussianBlur(wanted.mask_blur))
    elif wanted.transparent_is_repainted and _is_partly_transparent(given):
        own = _mask(given, transparent_is_repainted=True)
        mask = own if _is_any_repainted(own) else None  # a shadow is no mask
    return OpenedPicture(image, mask, _sha256(wanted.image), mask_sha256)


def crop_of(wanted: Wanted, opened: OpenedPicture, height: int, width: int) -> Box | None:
    """The part of the picture that is denoised in this size; None for all of it.

    Raises InvalidRequestError, which names the field.
    """
    if wanted.padding_mask_crop is None:
        return None
    if opened.mask is None:
        raise wanted.refusal("padding_mask_crop", "it needs a mask, around which to crop")
    if math.prod(opened.size) > MAX_CROPPED_PIXELS:
        raise wanted.refusal(
            "padding_mask_crop",
            f"the picture has {math.prod(opened.size)} pixels; with a crop, at most {MAX_CROPPED_PIXELS} "
            "are allowed",
        )
    # Here, because importing diffusers takes seconds and most processes that import this need none.
    from diffusers.image_processor import VaeImageProcessor  # noqa: PLC0415

    # Its own idea of a mask is whatever is not black.
    cut = opened.mask.point([0] * REPAINTED + [255] * (256 - REPAINTED))
    # A soft edge reaches as far as A1111's, which is a Gaussian's 2.5 standard deviations.
    padding = wanted.padding_mask_crop + int(2.5 * wanted.mask_blur + 0.5)
    left, top, right, bottom = VaeImageProcessor.get_crop_region(cut, width, height, pad=padding)
    return left, top, right, bottom


def _decoded(wanted: Wanted, field: str, data: bytes, limits: Limits) -> Image.Image:
    """A decoded file, upright. Nothing is decoded before the header has told the size."""
    name = wanted.name(field)
    if len(data) > limits.max_image_bytes:
        raise ImageTooLargeError(
            f"{name}: has {len(data)} bytes; at most {limits.max_image_bytes} are allowed.", name
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        num_pixels = math.prod(image.size)
        # Telephones put a second picture behind the first one of a JPEG file.
        num_frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception as error:  # the file is a stranger's, and Pillow raises all sorts of errors
        raise UnsupportedImageError(
            f"{name}: is no PNG, JPEG or WebP file that can be read ({len(data)} bytes were given).", name
        ) from error
    if num_pixels > limits.max_image_pixels:
        raise ImageTooLargeError(
            f"{name}: has {num_pixels} pixels; at most {limits.max_image_pixels} are allowed.", name
        )
    if num_frames > 1:
        raise UnsupportedImageError(f"{name}: is animated ({num_frames} frames); send a still picture.", name)
    if image.format in ("JPEG", "MPO") and _has_too_many_scans(data):
        raise UnsupportedImageError(f"{name}: has more than {_MAX_SCANS} scans.", name)
    try:
        image.load()
        return _eight_bits(_upright(image))
    except Exception as error:  # as above
        raise UnsupportedImageError(f"{name}: is damaged or incomplete: {_reason(error)}.", name) from error


def _has_too_many_scans(data: bytes) -> bool:
    """Looks at the markers up to the end of the first picture: telephones put films behind it."""
    scans, place = 0, 0
    while found := _MARKER.search(data, place):
        marker, place = found[1][0], found.end()
        if marker == _END_OF_IMAGE:
            return False
        if marker != _START_OF_IMAGE:
            place += int.from_bytes(data[place : place + 2], "big")  # a segment says its length
        scans += marker == _START_OF_SCAN
        if scans > _MAX_SCANS:
            return True
    return False


def _reason(error: Exception) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__)[:100]


def _upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF says that it stands, or as it is if that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a stranger's file again; the pixels are whole
        logger.info("a picture's EXIF cannot be read and is ignored")
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith(_WIDE_MODE):
        return image
    values: np.ndarray[Any, Any] = np.asarray(image.convert("I"))
    return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8))


def _mask(image: Image.Image, transparent_is_repainted: bool) -> Image.Image:
    """A mask in grey. In OpenAI's dialect transparency says what is repainted, wherever there is any."""
    if transparent_is_repainted and _is_partly_transparent(image):
        return ImageOps.invert(image.convert("RGBA").getchannel("A"))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer)
    return image.convert("L")


def _only_within(mask: Image.Image, crop: Box) -> Image.Image:
    """The mask without its soft edge outside the crop, where nothing is denoised to show through it."""
    within = Image.new("L", mask.size)
    within.paste(mask.crop(crop), crop[:2])
    return within


def _is_any_repainted(mask: Image.Image) -> bool:
    highest: Any = mask.getextrema()[1]
    return bool(highest >= REPAINTED)


def _is_partly_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    lowest: Any = image.convert("RGBA").getchannel("A").getextrema()[0]
    return bool(lowest < 255)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
