"""Reading request bodies. Starlette's own limit answers in plain text, not in the form of our errors."""

from starlette.requests import Request

from serve.errors import BodyTooLargeError

MAX_BODY_BYTES = 1 << 19


async def bounded_body(request: Request) -> bytes:
    """The body. Raises BodyTooLargeError as soon as more than MAX_BODY_BYTES have come."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLargeError(f"The body is larger than {MAX_BODY_BYTES} bytes.")
    return bytes(body)
