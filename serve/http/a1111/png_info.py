"""`POST /sdapi/v1/png-info`: what a picture's file says of how it was made."""

import asyncio
import base64
import io
from typing import Any

from PIL import ExifTags, Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.errors import InvalidInputError, InvalidRequestError
from serve.http.a1111 import operations
from serve.http.a1111.answers import PngInfo
from serve.http.a1111.bodies import PngInfoBody
from serve.http.a1111.infotext import parameters_of
from serve.http.body import bounded_body, parse_body
from serve.http.operations import described
from serve.start_pictures import FORMATS

_PARAMETERS = "parameters"
_CODE_LENGTH = 8  # of a comment's encoding, which is before it
_UTF_16 = b"UNICODE\0"
# Characters of all texts. In the file, compressed ones take a thousandth of it.
_MOST_READ = 1 << 20


class PngInfoRoute:
    """The handler of the route."""

    @property
    def routes(self) -> list[Route]:
        return [Route("/sdapi/v1/png-info", self._read, methods=["POST"])]

    @described(operations.PNG_INFO)
    async def _read(self, request: Request) -> Response:
        raw = await bounded_body(request)
        try:
            return JSONResponse(await asyncio.to_thread(lambda: _read(parse_body(PngInfoBody, raw).image)))
        except InvalidRequestError as error:  # its clients expect 422
            raise InvalidInputError(error.detail, error.param) from error


def _read(picture: str) -> PngInfo:
    """Reads the header only: no pixel is decoded. Raises InvalidRequestError."""
    encoded = picture.partition(",")[2] if picture.startswith("data:") else picture
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        # Of a PNG, Pillow would decode the pixels first.
        exif = Image.Exif() if image.format == "PNG" else image.getexif()
        comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except Exception as error:  # the file is a stranger's, and Pillow raises all sorts of errors
        raise InvalidRequestError("image: is no PNG, JPEG or WebP file in base64.", "image") from error
    texts: dict[str, Any] = {str(key): text for key, text in image.info.items() if isinstance(text, str)}
    info = texts.pop(_PARAMETERS, "") or _comment(comment)
    if (length := len(info) + sum(map(len, texts.values()))) > _MOST_READ:
        raise InvalidRequestError(
            f"image: has {length} characters of text; at most {_MOST_READ} are read.", "image"
        )
    return {"info": info, "items": texts, "parameters": parameters_of(info)}


def _comment(comment: object) -> str:
    """A comment of EXIF as A1111 writes it; empty for others."""
    if not isinstance(comment, bytes) or not comment.startswith(_UTF_16):
        return ""
    return comment[_CODE_LENGTH:].decode("utf-16-be", errors="replace")
