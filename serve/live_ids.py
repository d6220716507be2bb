"""The ids by which `GET /v1/status` shows requests."""

import hashlib

_LENGTH = 12


def live_id(request_id: str) -> str:
    """The id of a request in the live status, by which its client finds it there: the beginning of the
    SHA-256 of the request's or job's id. Everybody sees these ids, and a job's own id is the key to it."""
    return hashlib.sha256(request_id.encode()).hexdigest()[:_LENGTH]
