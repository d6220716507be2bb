"""A1111's text in pictures, for programs that read it there."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from deployments.engine.messages import ImageParameters

# A1111's names of samplers, where it has them, with its further settings.
_SAMPLERS: dict[str, tuple[str, dict[str, str]]] = {
    "DDIM eta 1": ("DDIM", {"Eta DDIM": "1.0"}),
    "KDPM2": ("DPM2", {}),
    "UniPC": ("UniPC", {"UniPC variant": "bh2", "UniPC order": "2"}),
    "UniPC 3": ("UniPC", {"UniPC variant": "bh2"}),
}


def infotext(
    image: ImageParameters,
    prompt: str,
    negative_prompt: str | None,
    model: str,
    more: Mapping[str, str] | None = None,
) -> str:
    """The text of A1111's chunk `parameters`, like its `create_infotext` (modules/processing.py).

    image: with the seed of this picture; more: further settings by A1111's names
    """
    sampler, settings = _SAMPLERS.get(image.sampler, (image.sampler, {}))
    if image.eta is not None:
        settings = settings | {"Eta DDIM" if sampler == "DDIM" else "Eta": str(image.eta)}
    parameters = {
        "Steps": str(image.num_inference_steps),
        "Sampler": sampler,
        "CFG scale": str(image.guidance_scale).removesuffix(".0"),
        "Seed": str(image.seed),
        "Size": f"{image.width}x{image.height}",
        "Model": model,
        "RNG": "CPU",  # makes A1111 draw the same noise
        **settings,
        **(more or {}),
        "Version": program_version(),
    }
    last_line = ", ".join(f"{name}: {_quoted(value)}" for name, value in parameters.items())
    negative = f"\nNegative prompt: {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{last_line}".strip()


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",\n:") else value


@cache
def program_version() -> str:
    """Midstep's name and version, as texts in pictures have it."""
    try:
        return f"midstep {version('midstep')}"
    except PackageNotFoundError:  # run from a source folder
        return "midstep unknown"
