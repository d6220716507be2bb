"""What A1111 writes into its pictures, for the programs that read it there."""

import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from deployments.engine.messages import ImageParameters

# Samplers as A1111 has them, where it does: its name and its settings beside that.
_SAMPLERS: dict[str, tuple[str, dict[str, str]]] = {
    "DDIM eta 1": ("DDIM", {"Eta DDIM": "1.0"}),
    "KDPM2": ("DPM2", {}),
    "UniPC": ("UniPC", {"UniPC variant": "bh2", "UniPC order": "2"}),
    "UniPC 3": ("UniPC", {"UniPC variant": "bh2"}),
}


def infotext(image: ImageParameters, prompt: str, negative_prompt: str | None, model: str) -> str:
    """The text of A1111's chunk `parameters`, after its `create_infotext` (modules/processing.py).

    image: with the seed of this picture
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
        "RNG": "CPU",  # where A1111 is to draw the same noise
        **settings,
        "Version": f"midstep {_version()}",
    }
    last_line = ", ".join(f"{name}: {_quoted(value)}" for name, value in parameters.items())
    negative = f"\nNegative prompt: {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{last_line}".strip()


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",\n:") else value


@cache
def _version() -> str:
    try:
        return version("midstep")
    except PackageNotFoundError:  # run from a folder of its source
        return "unknown"
