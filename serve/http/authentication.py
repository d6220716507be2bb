"""Identifies the client by its API key, before the rest of the request is read."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.clients import Client, Clients
from serve.errors import InvalidApiKeyError
from serve.http.problems import problem_response

# Clients of A1111 send what its option --api-auth asks for.
_BASIC_ALLOWED_BELOW = "/sdapi/"


class Authentication:
    """ASGI middleware. open_routes: the only routes that need no key"""

    def __init__(self, app: ASGIApp, clients: Clients, open_routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._clients = clients
        self._open_routes = open_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope):
            request = Request(scope)
            try:
                # Other routes have names of models in their paths, which may be anything.
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                request.state.client = self._clients.of(
                    request.headers.get("authorization"), path.startswith(_BASIC_ALLOWED_BELOW)
                )
            except InvalidApiKeyError as error:
                response = problem_response(error, request)
                response.headers["www-authenticate"] = "Bearer"
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is not Match.NONE for route in self._open_routes)


def client_of(request: Request) -> Client:
    """The client of a request that came through Authentication by a route that needs a key."""
    client: Client = request.state.client
    return client
