"""Limits of a request's size and of the time that it may take to arrive."""

MAX_BODY_BYTES = 1 << 19
MAX_UPLOAD_BYTES = 1 << 25
BODY_TIMEOUT_S = 60.0  # for the whole body
_UPLOAD_TIMES = 10  # a file may take this many times as long
HEADERS_TIMEOUT_S = 30.0
# Files, as they are or in data URLs.
_TAKING_FILES = (
    "/files",
    "/images/edits",
    "/images/variations",
    "/predictions",
    "/sdapi/v1/img2img",
    "/sdapi/v1/png-info",
)


def max_body_bytes(path: str) -> int:
    """The limit of a body sent to this path. Files may be larger than other bodies."""
    return MAX_UPLOAD_BYTES if _takes_files(path) else MAX_BODY_BYTES


def body_times(path: str) -> int:
    """How many times as long as another body a body sent to this path may take."""
    return _UPLOAD_TIMES if _takes_files(path) else 1


def _takes_files(path: str) -> bool:
    return path.endswith(_TAKING_FILES)
