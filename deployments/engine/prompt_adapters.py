"""Adapters that a prompt names in A1111's syntax: `<lora:name:0.8>`, or `<lyco:...>`, which means the same.

`<lora:name:0.8:0.6>` has a scale for the text encoders and one for the U-Net, and so has
`<lora:name:te=0.8:unet=0.6>`. The tags are no text: nothing of them is encoded.
"""

import math
import re
from dataclasses import dataclass

TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>", re.IGNORECASE)
_SCALES = ("te", "unet")  # in A1111's order


@dataclass(frozen=True, slots=True)
class PromptAdapter:
    """unet_scale, text_scale: what its effect is multiplied by in the U-Net and in the text encoders"""

    name: str
    unet_scale: float
    text_scale: float


def without_adapters(text: str) -> str:
    """The prompt without the tags."""
    return TAG.sub("", text)


def adapters_in(text: str) -> list[PromptAdapter]:
    """The adapters that a prompt names, in order. Raises ValueError with the end of a sentence."""
    return [_read(found[0], found[1]) for found in TAG.finditer(text)]


def _read(tag: str, inside: str) -> PromptAdapter:
    name, *values = (part.strip() for part in inside.split(":"))
    if not name:
        raise ValueError(f"{tag[:60]!r} was given, which names no adapter; write <lora:name:0.8>")
    scales: dict[str, float] = {}
    for index, value in enumerate(values):
        key, equals, number = value.partition("=")
        if not equals:
            key, number = _SCALES[index] if index < len(_SCALES) else "", value
        if key not in _SCALES:
            raise ValueError(
                f"{tag[:60]!r} was given; after the name there may be two numbers: the scale in the text "
                "encoders and the one in the U-Net"
            )
        scales[key] = _number(tag, number)
    text_scale = scales.get("te", 1.0)
    return PromptAdapter(name, scales.get("unet", text_scale), text_scale)


def _number(tag: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{tag[:60]!r} was given, in which {text[:20]!r} is no number")
    return number
