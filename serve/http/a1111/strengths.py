"""A1111's `denoising_strength`."""


def strength_of(given: float, steps: int) -> float:
    """The share of a pass's steps that is done. A1111 always does one, even with a strength of 0."""
    # A little more than the share of one step: 1 / 49 * 49 is less than 1.
    return max(given, min(1.0, (1 + 1e-6) / steps))
