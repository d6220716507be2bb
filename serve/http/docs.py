"""`/openapi.json`, and `/docs`, which shows it in a browser. All files for the browser are served here."""

import asyncio
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from serve.errors import RouteNotFoundError

# The package has Swagger UI's files, none of them specific to FastAPI. Its code is not used.
_PACKAGE, _FOLDER = "fastapi-swagger", "fastapi_swagger/resources"
_FILES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
_SCRIPT = "start.js"
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#viewer",
  deepLinking: true,
  tryItOutEnabled: true,
  persistAuthorization: true,
  validatorUrl: null,
});
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Midstep API</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="viewer"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_OWN_HOST_ONLY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; frame-ancestors 'none'"
)
_A_DAY = "public, max-age=86400"


class DocsRoutes:
    """The handlers of the routes. make_document: makes the OpenAPI document at its first use"""

    def __init__(self, make_document: Callable[[], Mapping[str, Any]]) -> None:
        self._document = cache(make_document)

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/openapi.json", self._openapi, include_in_schema=False),
            Route("/docs", self._page, include_in_schema=False),
            Route("/docs/{name}", self._file, include_in_schema=False),
        ]

    async def _openapi(self, _: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self._document))

    async def _page(self, _: Request) -> Response:
        return HTMLResponse(_PAGE, headers={"content-security-policy": _OWN_HOST_ONLY})

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        headers = {"cache-control": _A_DAY, "x-content-type-options": "nosniff"}
        if name == _SCRIPT:
            return Response(_START, headers=headers, media_type="text/javascript")
        if name not in _FILES:
            raise RouteNotFoundError(f"There is no file {name[:64]!r} of the viewer. It is at /docs.")
        data = await asyncio.to_thread(_read, name)
        return Response(data, headers=headers, media_type=_FILES[name])


def _read(name: str) -> bytes:
    return Path(str(distribution(_PACKAGE).locate_file(f"{_FOLDER}/{name}"))).read_bytes()
