"""The base URL in answers."""

from starlette.requests import Request


def base_url(request: Request, public_url: str | None) -> str:
    """The URL by which clients reach this server, without a slash at the end.

    public_url: from the configuration; None: use the request's own address
    """
    return (public_url or str(request.base_url)).rstrip("/")
