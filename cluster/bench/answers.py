"""Reads a server's answers, plain or as server-sent events, and classifies them."""

import json
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum

import aiohttp

MAX_DETAIL_LENGTH = 200


class Kind(StrEnum):
    """The outcome of a request."""

    COMPLETED = "completed"
    BUSY = "busy"  # 429 and 503: refused because the server is busy
    REJECTED = "rejected"  # any other 4xx
    SERVER_ERROR = "server error"  # any other status, an error event, an answer without a picture
    TRANSPORT_ERROR = "transport error"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Answer:
    """ended_s: time of the last byte, or of giving up; num_images: number of pictures in it"""

    kind: Kind
    ended_s: float
    num_images: int = 0
    first_preview_s: float | None = None
    detail: str = ""


async def read_answer(response: aiohttp.ClientResponse, asked: int, now_s: Callable[[], float]) -> Answer:
    """Reads a response to the end. asked: requested images. Raises aiohttp.ClientError if it is cut off."""
    if not 200 <= response.status < 300:
        text = (await response.text(errors="replace")).strip()
        detail = f"{response.status} {text}"[:MAX_DETAIL_LENGTH]
        return Answer(_kind(response.status), now_s(), detail=detail)
    if response.content_type == "text/event-stream":
        return await _read_stream(response, now_s)
    content = await response.read()
    ended_s = now_s()  # taken before parsing, which is not the server's time
    if num_images := images_in(content, response.content_type, asked):
        return Answer(Kind.COMPLETED, ended_s, num_images)
    return Answer(Kind.SERVER_ERROR, ended_s, detail="the answer has no picture")


def _kind(status: int) -> Kind:
    """The kind of a status that is not a success."""
    if status in (429, 503):
        return Kind.BUSY
    return Kind.REJECTED if 400 <= status < 500 else Kind.SERVER_ERROR


async def _read_stream(response: aiohttp.ClientResponse, now_s: Callable[[], float]) -> Answer:
    num_images, ended_s, first_preview_s = 0, 0.0, None
    async for name, data in server_sent_events(response.content):
        if name == "error":
            detail = data.decode(errors="replace")[:MAX_DETAIL_LENGTH]
            return Answer(Kind.SERVER_ERROR, now_s(), 0, first_preview_s, detail)
        if name.endswith("partial_image") and first_preview_s is None:
            first_preview_s = now_s()
        elif name.endswith("completed"):
            num_images, ended_s = num_images + 1, now_s()
    if num_images:
        return Answer(Kind.COMPLETED, ended_s, num_images, first_preview_s)
    return Answer(Kind.SERVER_ERROR, now_s(), 0, first_preview_s, "the stream ended without a picture")


def images_in(content: bytes, content_type: str, asked: int) -> int:
    """Pictures in an answer: one if it is a picture itself, else the length of its list `data` or `images`.

    An answer of another form is trusted and counts as the requested number.
    """
    if content_type.startswith("image/"):
        return 1
    try:
        answer = json.loads(content)
    except ValueError:
        return asked
    for name in ("data", "images"):
        if isinstance(answer, dict) and isinstance(answer.get(name), list):
            return len(answer[name])
    return asked


async def server_sent_events(lines: AsyncIterable[bytes]) -> AsyncIterator[tuple[str, bytes]]:
    """Name and data of each event. An event without a name takes the `type` in its data."""
    name, data = "", b""
    async for line in lines:
        key, _, value = line.rstrip(b"\r\n").partition(b":")
        if key == b"event":
            name = value.strip().decode(errors="replace")
        elif key == b"data":
            data += value.strip()
        elif not line.strip() and data:
            yield name or _type(data), data
            name, data = "", b""


def _type(data: bytes) -> str:
    try:
        event = json.loads(data)
    except ValueError:  # such as the [DONE] that ends some streams
        return ""
    return str(event.get("type", "")) if isinstance(event, dict) else ""
