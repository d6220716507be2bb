"""Pictures to start from, as options of the command line: files or URLs."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.bench.option_values import Read

if TYPE_CHECKING:
    from cluster.client.predictions import Predictions

# Replicate's limit for data URLs. A larger file is uploaded, so that the request stays small.
MAX_DATA_URL_BYTES = 256 * 1024
_URLS = ("http://", "https://", "data:")


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture's file, with its media type by its first bytes."""

    name: str
    media_type: str
    data: bytes

    @property
    def data_url(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"


Picture = PictureFile | str  # a file, or a URL


def read_picture(text: str) -> Picture:
    """Reads a file; a URL stays as it is. Raises OSError, and ValueError for a file that is no picture."""
    if text.startswith(_URLS):
        return text
    path = Path(text)
    data = path.read_bytes()
    if (media_type := _media_type(data)) is None:
        problem = "begins neither as a PNG nor as a JPEG nor as a WebP file" if data else "is empty"
        raise ValueError(f"{text}: {problem}")
    # A file's name may have bytes that are no text.
    return PictureFile(path.name.encode(errors="replace").decode(), media_type, data)


def input_of(picture: Picture, predictions: "Predictions", *, is_in_body: bool) -> str:
    """The input for a picture: a URL, or for a small file a data URL. A larger file is uploaded.

    is_in_body: also a large file becomes a data URL
    Raises ServerError.
    """
    if isinstance(picture, str):
        return picture
    if is_in_body or len(picture.data) <= MAX_DATA_URL_BYTES:
        return picture.data_url
    return predictions.upload(picture.name, picture.media_type, picture.data)


def _media_type(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return None


PICTURE = Read("file|url", read_picture)
