"""Pages of a client's own jobs and files, in Replicate's form."""

from typing import Any, TypedDict

from starlette.requests import Request

from serve.http.authentication import client_of
from serve.jobs.pages import Page

PAGE_SIZE = 100


class Links(TypedDict):
    """The URLs of the pages before and after this one."""

    next: str | None
    previous: str | None


def asked(request: Request) -> tuple[int, str | None, str]:
    """The requested page: its size, its cursor, and the owner of its items."""
    return PAGE_SIZE, request.query_params.get("cursor"), client_of(request).name


def links(page: Page[Any], url: str) -> Links:
    """url: of the list"""
    return {
        "next": page.next and f"{url}?cursor={page.next}",
        "previous": page.previous and f"{url}?cursor={page.previous}",
    }
