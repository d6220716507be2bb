"""Brings a picture and its mask into the form in which they go to the VAE. This needs no torch."""

from __future__ import annotations

import numpy as np
from PIL import Image

from deployments.engine.messages import Picture

REPAINTED = 128  # from this value on, a pixel of a mask is repainted, as in diffusers' pipelines


def fit_picture(picture: Image.Image, mask: Image.Image | None, height: int, width: int) -> Picture:
    """A picture in RGB and its mask in a size in pixels. mask: white is repainted"""
    return join_mask(_resized(picture, height, width), mask and _resized(mask, height, width))


def join_mask(picture: Image.Image, mask: Image.Image | None) -> Picture:
    """A picture in RGB and a mask of its size, in that size."""
    if mask is not None:
        picture = picture.copy()
        picture.putalpha(mask.convert("L"))
    return Picture(np.asarray(picture))


def on_white(picture: Image.Image) -> Image.Image:
    """The picture in RGB. What is transparent becomes white."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _resized(picture: Image.Image, height: int, width: int) -> Image.Image:
    if picture.size == (width, height):
        return picture
    # Masks as bytes first: Pillow resizes palettes and bits without smoothing.
    full = picture if picture.mode == "RGB" else picture.convert("L")
    return full.resize((width, height), Image.Resampling.LANCZOS)
