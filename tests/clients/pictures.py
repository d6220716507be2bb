"""The pictures that clients get."""

import base64
import io
import urllib.request

from PIL import Image

PROMPT = "a red star on a blue background"
SIZE = (128, 128)  # the embedded model's default
_RED = ((255, 255), (0, 0), (0, 0))  # the lowest and highest values of each band


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


def png_mask(size: tuple[int, int] = SIZE, of_openai: bool = False) -> bytes:
    """A mask of the right half: transparent there, as OpenAI has it, or white."""
    half = (size[0] // 2, 0, *size)
    if of_openai:
        mask = Image.new("RGBA", size, "black")
        mask.paste((0, 0, 0, 0), half)
    else:
        mask = Image.new("L", size)
        mask.paste(255, half)
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def is_repainted(data: bytes) -> tuple[bool, bool]:
    """Whether the left and the right half of a picture are other than `png()`."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = picture.size
    halves = (picture.crop((0, 0, width // 2, height)), picture.crop((width // 2, 0, width, height)))
    return halves[0].getextrema() != _RED, halves[1].getextrema() != _RED


def png(size: tuple[int, int] = SIZE) -> bytes:
    """A picture to upload."""
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()
