"""Request bodies: JSON with placeholders such as "{prompt}", filled from a planned request."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from cluster.bench.mix import PlannedRequest
from cluster.bench.pictures import picture_urls

PICTURE_SIZE = (512, 512)  # width and height in pixels, where a request has none
_NOT_SENT = ("due_s", "num_loras")
# `image` and `mask` are data URLs.
PLACEHOLDERS = (
    *(field.name for field in fields(PlannedRequest) if field.name not in _NOT_SENT),
    "image",
    "mask",
)
# OpenAI's images dialect with extensions that image servers share.
IMAGES_BODY: Mapping[str, Any] = {
    "model": "{model}",
    "prompt": "{prompt}",
    "n": "{num_images}",
    "size": "{width}x{height}",
    "seed": "{seed}",
    "num_inference_steps": "{num_inference_steps}",
    "guidance_scale": "{guidance_scale}",
    "sampler": "{sampler}",
    "image": "{image}",
    "mask": "{mask}",
    "strength": "{strength}",
    "loras": "{loras}",
    "response_format": "b64_json",  # a URL as well would be one more thing to measure
}
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def fill(template: Any, request: PlannedRequest, picture_size: tuple[int, int] = PICTURE_SIZE) -> Any:
    """The template with its placeholders filled in.

    picture_size: width and height in pixels of the picture that a request without a size starts from
    A string that is just one placeholder becomes the value with its type; in a longer string it becomes text.
    If a needed value is None, the item is left out of its object or list, so that the server chooses.
    """
    size = request.width or picture_size[0], request.height or picture_size[1]
    return _filled(template, asdict(request) | picture_urls(request.task, request.seed, size))


def _filled(template: Any, values: Mapping[str, Any]) -> Any:
    match template:
        case str():
            return _filled_text(template, values)
        case dict():
            items = {key: (item, _filled(item, values)) for key, item in template.items()}
            return {key: new for key, (old, new) in items.items() if new is not None or old is None}
        case list():
            pairs = [(item, _filled(item, values)) for item in template]
            return [new for old, new in pairs if new is not None or old is None]
    return template


def _filled_text(text: str, values: Mapping[str, Any]) -> Any:
    names = _PLACEHOLDER.findall(text)
    if any(values[name] is None for name in names):
        return None
    if len(names) == 1 and text == f"{{{names[0]}}}":
        return values[names[0]]
    return _PLACEHOLDER.sub(lambda match: str(values[match[1]]), text)


def read_template(path: Path) -> dict[str, Any]:
    """Reads a template. Raises OSError, and ValueError for a non-object or an unknown placeholder."""
    try:
        template = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON: {error}") from error
    if not isinstance(template, dict):
        raise ValueError(f"{path}: is not a JSON object")
    for name in _PLACEHOLDER.findall(json.dumps(template)):
        if name not in PLACEHOLDERS:
            raise ValueError(f"{path}: unknown placeholder {{{name}}}; known are {', '.join(PLACEHOLDERS)}")
    return template
