"""Files of pictures to start from, whole and broken, for tests."""

import base64
import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "white": (255, 255, 255),
}
QUARTERS = ["red", "green", "blue", "black"]


def picture(width: int = 96, height: int = 64) -> Image.Image:
    """Its quarters are red and green above, blue and black below."""
    image = Image.new("RGB", (width, height))
    for index, colour in enumerate(QUARTERS):
        left, top = index % 2 * width // 2, index // 2 * height // 2
        image.paste(COLOURS[colour], (left, top, left + width // 2, top + height // 2))
    return image


def right_half(
    size: tuple[int, int] = (96, 64), mode: str = "L", left: Any = 0, right: Any = 255
) -> Image.Image:
    """An image of two values. By default it is a mask for the right half."""
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def half_transparent(image: Image.Image) -> Image.Image:
    """The image, with a transparent right half."""
    whole = image.convert("RGBA")
    whole.putalpha(right_half(image.size, left=255, right=0))
    return whole


def quarters(image: Image.Image) -> list[str]:
    """The nearest colours in the middle of each quarter, row by row."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    middles = [pixels[row * height // 4, column * width // 4] for row in (1, 3) for column in (1, 3)]
    return [min(COLOURS, key=lambda name: abs(middle - COLOURS[name]).sum()) for middle in middles]


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_header(width: int, height: int, *more: bytes) -> bytes:
    """A PNG that says its size, and has next to nothing else. more: chunks after the header"""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + pixels + png_chunk(b"IEND", b"")


def animated(kind: str) -> bytes:
    return file_of(picture(), kind, save_all=True, append_images=[picture().rotate(180)])
