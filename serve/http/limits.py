"""Limits of a request's size and of the time that it may take to arrive."""

MAX_BODY_BYTES = 1 << 19
MAX_UPLOAD_BYTES = 1 << 25
BODY_TIMEOUT_S = 60.0  # for the whole body
HEADERS_TIMEOUT_S = 30.0


def max_body_bytes(path: str) -> int:
    """The limit of a body sent to this path. Files may be larger than other bodies."""
    return MAX_UPLOAD_BYTES if path.endswith("/files") else MAX_BODY_BYTES
