"""The pictures that clients get."""

import base64
import io
import urllib.request

from PIL import Image

PROMPT = "a red star on a blue background"
SIZE = (128, 128)  # the embedded model's default


def size_of(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size


def format_of(data: bytes) -> str | None:
    return Image.open(io.BytesIO(data)).format


def decoded(b64_json: str | None) -> bytes:
    assert b64_json, "there is no picture in the answer"
    return base64.b64decode(b64_json)


def fetched(url: str | None) -> bytes:
    assert url, "there is no URL in the answer"
    with urllib.request.urlopen(url, timeout=60) as response:
        data: bytes = response.read()
    return data


def png(size: tuple[int, int] = SIZE) -> bytes:
    """A picture to upload."""
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()
