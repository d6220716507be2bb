"""The section `http` of the configuration."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from serve.config.schema import Section

_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#\sA-Z]+")
_NEVER_SENT = re.compile(r"http://.*:80|https://.*:443")


def _checked(origin: str) -> str:
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(
            f'{origin!r} is neither "*" nor an origin in small letters such as "https://example.com"'
        )
    if _NEVER_SENT.fullmatch(origin):
        raise ValueError(f"{origin!r} names its scheme's own port, which browsers leave out")
    return origin


class HttpConfig(Section):
    """Additions to the API on the server's HTTP port."""

    cors_origins: tuple[Annotated[str, AfterValidator(_checked)], ...] = Field(
        (), description='origins whose pages may call the server from a browser; `["*"]`: all'
    )
    playground: bool = Field(True, description="`/` is a page for browsers, where people make pictures")
    metrics: bool = Field(
        True, description="`/metrics` has what Ray exports; turn it off where Ray's own ports are scraped"
    )
