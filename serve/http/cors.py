"""Cross-origin requests: which pages of other origins may call this server from a browser."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from serve.errors import InvalidRequestError
from serve.http.problems import problem

_EXPOSED = ("x-request-id", "retry-after", "x-should-retry", "location")


class Cors(CORSMiddleware):
    """Starlette's middleware, with refusals in our form of errors."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=_EXPOSED
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        refusal = problem(InvalidRequestError(f"{bytes(response.body).decode()} (http.cors_origins)."), "")
        for name, value in response.headers.items():
            if name.startswith("access-control-") or name == "vary":
                refusal.headers[name] = value
        return refusal
