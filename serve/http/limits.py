"""Limits of a request's size and of the time that it may take to arrive."""

MAX_BODY_BYTES = 1 << 19
BODY_TIMEOUT_S = 60.0  # for the whole body
HEADERS_TIMEOUT_S = 30.0
