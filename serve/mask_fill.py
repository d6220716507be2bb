"""Fills what is to be repainted with the colours around it, so that what was there does not show through."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from deployments.engine.fit_picture import REPAINTED
from deployments.engine.messages import Picture

_MOST_PIXELS = 512 * 512  # that are filled: colours that spread have no detail to lose
_GREY = 0.5  # where a mask keeps nothing to spread
_GAIN = 4.0  # of what is known, from a size to half of it: one known pixel of four is enough
# Pixels of the mask's edge show some of what is to vanish, so none of them spreads.
_KEPT = [255, *([0] * 255)]
# The soft edge keeps its own colours where it is darker, and passes over to the others.
_SHARE = [max(0, round((value - REPAINTED) * 255 / (255 - REPAINTED))) for value in range(256)]
_BOX, _BILINEAR = Image.Resampling.BOX, Image.Resampling.BILINEAR
Floats = npt.NDArray[np.float32]


def filled(picture: Picture) -> Picture:
    """The picture with other colours where its mask is white, in its crop if it has one."""
    height, width = picture.pixels.shape[:2]
    left, top, right, bottom = picture.crop or (0, 0, width, height)
    part = Image.fromarray(picture.pixels[top:bottom, left:right])
    colours, mask = part.convert("RGB"), part.getchannel("A")
    kept = mask.point(_KEPT)
    scale = min(1.0, (_MOST_PIXELS / (part.width * part.height)) ** 0.5)
    size = max(1, round(part.width * scale)), max(1, round(part.height * scale))
    known = Image.composite(colours, Image.new("RGB", part.size), kept)
    spread = _spread(_floats(known.resize(size, _BOX)), _floats(kept.resize(size, _BOX)))
    around = Image.fromarray((spread.clip(0, 1) * 255).round().astype(np.uint8)).resize(part.size, _BILINEAR)
    pixels = picture.pixels.copy()
    pixels[top:bottom, left:right, :3] = np.asarray(Image.composite(around, colours, mask.point(_SHARE)))
    return replace(picture, pixels=pixels)


def _spread(colours: Floats, known: Floats) -> Floats:
    """Colours [h, w, 3] everywhere, from where they are known: each gap gets the mean around it, which
    smaller and smaller copies of the picture have.

    colours: multiplied by known [h, w], which is 1 where they are known, 0 where not, and anything between
    """
    height, width = known.shape
    if height == width == 1:
        return colours / known[:, :, None] if known[0, 0] > 0 else np.full_like(colours, _GREY)
    half = (width + 1) // 2, (height + 1) // 2
    fewer, coarse = _resized(known, half), _resized(colours, half)
    gain = np.minimum(_GAIN, 1 / np.maximum(fewer, 1e-12))
    around = _resized(_spread(coarse * gain[:, :, None], fewer * gain), (width, height))
    return colours + (1 - known[:, :, None]) * around


def _resized(values: Floats, size: tuple[int, int]) -> Floats:
    """Values [h, w] or [h, w, channels] in another size, width first: means, or lines between points."""
    if values.ndim == 3:
        bands = [_resized(values[:, :, band], size) for band in range(values.shape[2])]
        return np.stack(bands, axis=2)
    image = Image.fromarray(values)
    is_smaller = size[0] < image.width or size[1] < image.height
    return np.asarray(image.resize(size, _BOX if is_smaller else _BILINEAR), dtype=np.float32)


def _floats(image: Image.Image) -> Floats:
    return np.asarray(image, dtype=np.float32) / np.float32(255)
