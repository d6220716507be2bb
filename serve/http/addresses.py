"""The addresses that answers refer to."""

from starlette.requests import Request


def base_url(request: Request, public_url: str | None) -> str:
    """What clients reach this server by, without a slash at the end.

    public_url: as the configuration has it; None: what the request was sent to
    """
    return (public_url or str(request.base_url)).rstrip("/")
