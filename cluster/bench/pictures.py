"""Pictures and masks that requests start from, drawn in code and reproducible by seed."""

import base64
import io
import random

from PIL import Image, ImageDraw

from cluster.bench.tasks import Task

# The grid of colors that is blurred to a picture. Files are about as large as those of photographs.
_GRID = 16


def picture_urls(task: Task, seed: int, size: tuple[int, int]) -> dict[str, str | None]:
    """The data URLs of a request's picture and mask; None for what its task does not have.

    size: width and height in pixels. Each seed has a picture of its own, so that a server that keeps pictures
    has not encoded it before.
    """
    return {
        "image": _data_url(_picture(seed, size), "JPEG") if task.starts_from_picture else None,
        "mask": _data_url(_mask(size), "PNG") if task is Task.INPAINT else None,
    }


def _picture(seed: int, size: tuple[int, int]) -> Image.Image:
    colors = random.Random(seed).randbytes(3 * _GRID * _GRID)
    return Image.frombytes("RGB", (_GRID, _GRID), colors).resize(size, Image.Resampling.BICUBIC)


def _mask(size: tuple[int, int]) -> Image.Image:
    """A mask that repaints the middle, a quarter of the picture.

    The middle is both transparent, as OpenAI's dialect has it, and white, as most others do.
    """
    width, height = size
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    middle = width // 4, height // 4, width - width // 4 - 1, height - height // 4 - 1
    ImageDraw.Draw(mask).rectangle(middle, fill=(255, 255, 255, 0))
    return mask


def _data_url(image: Image.Image, file_format: str) -> str:
    file = io.BytesIO()
    image.save(file, file_format, quality=90)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
