"""Values of a request that depend on no model, and what they may be."""

import secrets

from deployments.engine.messages import ImageFormat, steps_from_picture
from serve.start_pictures import OpenedPicture
from serve.wanted import Wanted

MAX_SEED = 2**53 - 1  # the largest integer that every JSON reader keeps
MEDIA_TYPES = {"png": "image/png", "webp": "image/webp", "jpg": "image/jpeg", "jpeg": "image/jpeg"}
RANDOM_SEED = -1  # in other programs this means any seed
_STRENGTH = 0.8  # diffusers' for image to image


def strength_of(wanted: Wanted, opened: OpenedPicture, steps: int) -> float:
    """The share of the steps that is done."""
    strength = wanted.strength
    if strength is None:
        strength = _STRENGTH if opened.mask is None else 1.0
    if steps_from_picture(steps, strength) < 1:
        raise wanted.refusal(
            "strength", f"{strength:g} of {steps} steps leaves no step; at least {1 / steps:.2g} does"
        )
    return strength


def seed_of(wanted: Wanted) -> int:
    """The first image's seed. The last image's seed is valid too."""
    num_images = wanted.num_images or 1
    if wanted.seed is None or wanted.seed == RANDOM_SEED:
        return secrets.randbelow(2**32)
    if wanted.seed + num_images - 1 > MAX_SEED:
        raise wanted.refusal(
            "seed",
            f"{wanted.seed} was given for {num_images} images, the last of which would have "
            f"{wanted.seed + num_images - 1}; at most {MAX_SEED} is allowed",
        )
    return wanted.seed


def guidance_interval(wanted: Wanted) -> tuple[float, float]:
    """The start and the end of guidance, as fractions of the steps."""
    start = wanted.guidance_start or 0.0
    end = 1.0 if wanted.guidance_end is None else wanted.guidance_end
    if start >= end:
        raise wanted.refusal(
            "guidance_start",
            f"{start:g} was given, and {end:g} as {wanted.name('guidance_end')}; it must start before it "
            f"ends ({wanted.name('guidance_scale')} 1 turns guidance off)",
        )
    return start, end


def image_format_of(wanted: Wanted) -> ImageFormat:
    output_format = wanted.output_format or "png"
    if output_format == "png" and wanted.output_quality not in (None, 100):
        raise wanted.refusal("output_quality", "PNG is lossless; choose webp or jpeg")
    return ImageFormat(MEDIA_TYPES[output_format], wanted.output_quality)
