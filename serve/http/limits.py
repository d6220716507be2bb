"""Limits of a request's size and of the time that it may take to arrive."""

MAX_BODY_BYTES = 1 << 19
MAX_UPLOAD_BYTES = 1 << 25
BODY_TIMEOUT_S = 60.0  # for all of it
HEADERS_TIMEOUT_S = 30.0


def max_body_bytes(path: str) -> int:
    """The limit of a body that is sent to this path: files may be larger than what tells of pictures."""
    return MAX_UPLOAD_BYTES if path.endswith("/files") else MAX_BODY_BYTES
