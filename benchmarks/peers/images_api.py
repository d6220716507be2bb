"""The peers' API: a short version of Midstep's `POST /v1/images/generations`.

Nothing is checked, because only the load generator calls it.
"""

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

PATH = "/v1/images/generations"


@dataclass(frozen=True)
class Settings:
    """The settings that images of one pipeline call share. width, height: pixels; None: model's default"""

    num_inference_steps: int
    guidance_scale: float
    width: int | None
    height: int | None


@dataclass(frozen=True)
class ImageRequest:
    """One image."""

    prompt: str
    negative_prompt: str
    seed: int
    settings: Settings


def read_body(body: Mapping[str, Any]) -> list[ImageRequest]:
    """A request for each of the `n` images, with seeds seed, seed + 1, ..."""
    size = body.get("size")
    width, height = (None, None) if size in (None, "auto") else map(int, size.split("x"))
    settings = Settings(
        body.get("num_inference_steps") or 20, float(body.get("guidance_scale", 5.0)), width, height
    )
    negative_prompt = body.get("negative_prompt") or ""
    return [
        ImageRequest(body["prompt"], negative_prompt, (body.get("seed") or 0) + index, settings)
        for index in range(body.get("n") or 1)
    ]


def png(image: Image.Image) -> str:
    """A PNG file in base64."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def answer(pngs: Iterable[str]) -> dict[str, Any]:
    return {"data": [{"b64_json": content} for content in pngs]}
