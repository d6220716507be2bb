"""The default shares of GPUs among the stages.

A denoiser's share is above one half, so that two of them are never on one GPU. All encoders and decoders
together take no more than a denoiser leaves of its GPU. So in any order of start, and wherever Ray puts
replicas, every denoiser finds a place. A share is Ray's bookkeeping and limits nobody's time or memory.
"""

import math
from collections.abc import Mapping

_DENOISER, _ALL_DECODERS, _ALL_ENCODERS = 0.8, 0.16, 0.04
UNITS = 10_000  # Ray's smallest unit is this part of a GPU


def gpu_shares(num_encoders: int, num_decoders: int) -> Mapping[str, float]:
    """The share of one replica of each stage, by its section's key."""
    return {
        "encoder": _part(_ALL_ENCODERS, num_encoders),
        "denoiser": _DENOISER,
        "decoder": _part(_ALL_DECODERS, num_decoders),
    }


def _part(whole: float, count: int) -> float:
    """One of `count` equal parts, rounded down to Ray's unit, but never zero."""
    return max(1, math.floor(round(whole * UNITS) / count)) / UNITS
