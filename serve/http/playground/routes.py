"""`/`, the playground's page, and `/playground/`, its files. They hold no secrets and need no key."""

import asyncio
import hashlib
import mimetypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.errors import RouteNotFoundError

FOLDER = Path(__file__).parent / "static"
_INDEX = "index.html"
_MEDIA_TYPES = {  # the system's own table may lack some
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}


class _File(NamedTuple):
    data: bytes
    media_type: str
    etag: str


class PlaygroundRoutes:
    """The handlers of the routes.

    is_on: `http.playground`; elsewhere: whether pictures may redirect to an object store's own host
    """

    def __init__(self, is_on: bool, elsewhere: bool) -> None:
        self._is_on = is_on
        self._headers = {
            "cache-control": "no-cache",  # a browser asks each time, so that all files are of one version
            "content-security-policy": _policy(elsewhere),
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/", self._page, include_in_schema=False),
            Route("/playground/{path:path}", self._file, include_in_schema=False),
        ]

    async def _page(self, request: Request) -> Response:
        return await self._answer(request, _INDEX)

    async def _file(self, request: Request) -> Response:
        return await self._answer(request, request.path_params["path"])

    async def _answer(self, request: Request, name: str) -> Response:
        if not self._is_on:
            raise RouteNotFoundError(
                "There is no playground here (http.playground: false). /docs lists all routes."
            )
        file = (await asyncio.to_thread(_files)).get(name)
        if file is None:
            raise RouteNotFoundError(f"There is no file {name[:64]!r} of the playground. It is at /.")
        headers = {**self._headers, "etag": file.etag}
        if _has_it(request, file.etag):
            return Response(status_code=304, headers=headers)
        return Response(file.data, headers=headers, media_type=file.media_type)


@cache
def _files() -> Mapping[str, _File]:
    """All files by their paths. Read once, so that no path of a request ever names a file on disk."""
    paths = [path for path in FOLDER.rglob("*") if path.is_file()]
    return {path.relative_to(FOLDER).as_posix(): _read(path) for path in paths}


def _read(path: Path) -> _File:
    data = path.read_bytes()
    media_type = _MEDIA_TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    return _File(data, media_type or "application/octet-stream", f'"{hashlib.sha256(data).hexdigest()[:32]}"')


def _has_it(request: Request, etag: str) -> bool:
    known = request.headers.get("if-none-match", "")
    return etag in {tag.strip().removeprefix("W/") for tag in known.split(",")}


def _policy(elsewhere: bool) -> str:
    pictures = "'self' data: blob: https: http:" if elsewhere else "'self' data: blob:"
    return (
        f"default-src 'self'; img-src {pictures}; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )
