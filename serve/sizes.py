"""The size of a request's images: what it says, what it starts from, and what is allowed."""

import math
from dataclasses import dataclass
from fractions import Fraction

from deployments.engine.messages import LatentShape
from serve.config.limits import Limits
from serve.start_pictures import OpenedPicture
from serve.wanted import Wanted


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that a model makes. default: height and width in pixels; scale_factor: pixels per latent"""

    limits: Limits
    default: tuple[int, int]
    scale_factor: int

    def of(self, wanted: Wanted, opened: OpenedPicture | None) -> tuple[int, int]:
        """The request's height and width in pixels. opened: what it starts from

        Raises InvalidRequestError, which names the field.
        """
        height, width = self.default
        is_given = wanted.height is not None and wanted.width is not None
        if opened is not None and wanted.padding_mask_crop is None and not is_given:
            height, width = self._size_of(opened, wanted)
        height = height if wanted.height is None else wanted.height
        width = width if wanted.width is None else wanted.width
        self.check(wanted, ("width", "height"), height, width)
        return height, width

    def _size_of(self, opened: OpenedPicture, wanted: Wanted) -> tuple[int, int]:
        """The size of a picture, within what is allowed, rounded down to what the model can make. If one side
        is given, the other one follows."""
        limits, factor = self.limits, self.scale_factor
        height, width = opened.size
        if wanted.height is not None:
            scale = Fraction(wanted.height, height)
        elif wanted.width is not None:
            scale = Fraction(wanted.width, width)
        else:
            least = -(-limits.min_size // factor) * factor
            # Exact, because 256 / 322 * 322 is less than 256.
            scale = min(
                max(Fraction(1), Fraction(least, min(height, width))),
                Fraction(limits.max_height, height),
                Fraction(limits.max_width, width),
                # Of the two, the one that rounds less.
                max(
                    Fraction(math.isqrt(limits.max_pixels * width // height), width),
                    Fraction(math.isqrt(limits.max_pixels * height // width), height),
                ),
            )
        fitted_height, fitted_width = (int(side * scale) // factor * factor for side in (height, width))
        if min(fitted_height, fitted_width) < limits.min_size:
            raise wanted.refusal(
                "image",
                f"has {width}x{height} pixels, which would become {fitted_width}x{fitted_height} here; "
                f"at least {limits.min_size} are needed on each side. Cut it, or give a width and a height",
            )
        return fitted_height, fitted_width

    def check(self, wanted: Wanted, names: tuple[str, str], height: int, width: int) -> None:
        """Raises InvalidRequestError if a size is not allowed.

        names: of the fields that say the width and the height
        """
        limits, factor = self.limits, self.scale_factor
        for side, name, pixels, limit in (
            ("width", names[0], width, limits.max_width),
            ("height", names[1], height, limits.max_height),
        ):
            if not limits.min_size <= pixels <= limit or pixels % factor:
                raise wanted.refusal(
                    name,
                    f"a {side} of {pixels} was given; allowed are multiples of {factor} "
                    f"from {limits.min_size} to {limit}",
                )
        if width * height > limits.max_pixels:
            raise wanted.refusal(
                names[0],
                f"{width}x{height} has {width * height} pixels; at most {limits.max_pixels} are allowed",
            )

    def latent_shape(self, height: int, width: int) -> LatentShape:
        return height // self.scale_factor, width // self.scale_factor
