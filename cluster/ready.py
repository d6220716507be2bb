"""The message of `midstep run` when all is ready: the addresses, and how to stop it."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path

import httpx
from ray.serve.schema import HTTPOptionsSchema

_ANSWER_TIMEOUT_S = 5.0
_ANY_ADDRESS = ("0.0.0.0", "::")
# Pages that are left out if they are not at their paths.
_PAGES = {"Playground": "/", "API docs": "/docs"}


def base_url(options: HTTPOptionsSchema, reached_at: str = "127.0.0.1") -> str:
    """The address of the HTTP server. reached_at: an address of the machine, used where the host means all"""
    scheme = "https" if options.ssl_certfile else "http"
    host = reached_at if options.host in _ANY_ADDRESS else options.host
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{options.port}"


def status_of(url: str) -> int | None:
    """The status of a GET; None without an answer."""
    try:
        # The server is our own, and its certificate is for the name that clients use.
        with httpx.Client(trust_env=False, verify=False, timeout=_ANSWER_TIMEOUT_S) as client:
            return client.get(url).status_code
    except httpx.HTTPError:
        return None


def token_command(environment: Mapping[str, str]) -> str | None:
    """The command that prints the token of Ray's dashboard; None if it asks for none."""
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    return f"{shlex.quote(os.path.relpath(Path(sys.executable).with_name('ray')))} get-auth-token"


def ready_block(
    applications: Mapping[str, str],
    dashboard: str,
    token: str | None,
    log: Path,
    status: Callable[[str], int | None] = status_of,
) -> list[str]:
    """The lines of what a user needs. applications: their URLs, by name; token: the command that prints it"""
    rows = []
    for name, url in applications.items():
        suffix = f" of {name}" if len(applications) > 1 else ""
        pages = {label: url.rstrip("/") + path for label, path in _PAGES.items()}
        rows += [(label + suffix, page) for label, page in pages.items() if status(page) == HTTPStatus.OK]
        rows.append((f"API{suffix}", f"{url.rstrip('/')}/v1"))
    if dashboard:
        asks = f" asks for the token that `{token}` prints" if token else ""
        rows.append(("Ray dashboard", f"http://{dashboard}{asks}"))
    rows.append(("Log", str(log)))
    rows.append(("To stop", "Ctrl-C: requests under way are answered first; jobs go on at the next start"))
    width = max(len(label) for label, _ in rows)
    return [f"  {label:<{width}}  {text}" for label, text in rows]
