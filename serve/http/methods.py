"""The methods of a path, for OPTIONS and for 405."""

from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send


def allowed_methods(scope: Scope) -> list[str]:
    """The methods of all routes with that path; empty if there are none."""
    methods: set[str] = set()
    for route in scope["app"].routes:
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            methods |= {"OPTIONS", *(route.methods or ())}
    return sorted(methods)


class Options:
    """ASGI middleware that answers OPTIONS at every existing path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] == "OPTIONS" and (methods := allowed_methods(scope)):
            app = Response(status_code=204, headers={"allow": ", ".join(methods)})
        await app(scope, receive, send)
