"""The routes of the dialects without `/v1`, for clients whose base URL ends without it."""

from collections.abc import Iterable

from starlette.routing import Route

_PREFIX = "/v1"


def with_versionless(routes: Iterable[Route]) -> list[Route]:
    """The routes, and again without `/v1` those that have it. The OpenAPI document leaves these out."""
    given = list(routes)
    return given + [
        Route(
            route.path.removeprefix(_PREFIX), route.endpoint, methods=route.methods, include_in_schema=False
        )
        for route in given
        if route.path.startswith(f"{_PREFIX}/")
    ]
