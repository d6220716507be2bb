"""Requests to addresses that clients name: only to public ones, to keep clients out of our own network."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

from aiohttp import (
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientError,
    ClientSession,
    ClientSSLError,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from aiohttp.abc import AbstractResolver
from yarl import URL

from serve.addresses import PrivateAddressError, is_public, public_socket
from serve.errors import InvalidRequestError, QueueFullError

MAX_URL_LENGTH = 2048
_RETRY_AFTER_S = 5
_HOST_NAME = re.compile(r"(?=.{1,253}$)([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_NUMBER = re.compile(
    r"([^.]*\.)*(0x[0-9a-f]*|[0-9]+)"
)  # C libraries read 127.1, 0x7f.1 and 2130706433 as 127.0.0.1


class Places:
    """The places for fetching at once. wait_s: how long a request waits for one; what: what is fetched"""

    def __init__(self, count: int, wait_s: float, what: str) -> None:
        self._free = asyncio.Semaphore(count)
        self._wait_s = wait_s
        self._what = what

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """One of the places. Raises QueueFullError if none is free in time."""
        try:
            await asyncio.wait_for(self._free.acquire(), self._wait_s)
        except TimeoutError as error:
            raise QueueFullError(
                f"Too many {self._what} are being fetched. Try again later.",
                retry_after_s=_RETRY_AFTER_S,
            ) from error
        try:
            yield
        finally:
            self._free.release()


def outbound_session(
    allow_private: bool, timeout_s: float, resolver: AbstractResolver | None = None
) -> ClientSession:
    """A session without cookies or proxies. allow_private: also for addresses that are not public

    Each request resolves its host and connects anew, so that the checked address is the used one.
    """
    connector = TCPConnector(
        socket_factory=None if allow_private else public_socket,
        resolver=resolver,
        use_dns_cache=False,
        force_close=True,
        limit=0,
    )
    return ClientSession(
        connector=connector,
        cookie_jar=DummyCookieJar(),
        trust_env=False,
        timeout=ClientTimeout(total=timeout_s),
        auto_decompress=False,
    )


def check_url(url: str, field: str, allow_private: bool) -> URL:
    """The parsed URL, if a request could be sent there. field: names it in errors

    The address of a name is checked when it is dialled.

    Raises InvalidRequestError.
    """

    def refused(why: str) -> InvalidRequestError:
        return InvalidRequestError(f"{field}: {why}.", field)

    if len(url) > MAX_URL_LENGTH:
        raise refused(f"must have at most {MAX_URL_LENGTH} characters")
    if not url.isprintable() or " " in url:
        raise refused("must not contain white space or control characters")
    try:
        parsed = URL(url)
    except (ValueError, IndexError) as error:  # yarl 1.25 stumbles over "http://@]"
        raise refused(f"is not a URL: {error}") from error
    if parsed.scheme not in {"http", "https"}:
        raise refused("must be a URL that begins with https:// or http://")
    if not parsed.raw_host:
        raise refused("has no host")
    if parsed.raw_user is not None or parsed.raw_password is not None:
        raise refused("must not contain a user or a password")
    host = parsed.raw_host.removesuffix(".").lower()
    try:
        is_local = not is_public(ip_address(host))
    except ValueError:
        if _NUMBER.fullmatch(host) or not _HOST_NAME.fullmatch(host):
            raise refused("has a host that is neither a name nor an address in its usual form") from None
        is_local = host == "localhost" or host.endswith(".localhost")
    if is_local and not allow_private:
        raise refused("must not be at an address that is not public")
    return parsed


def failure_reason(error: TimeoutError | ClientError | OSError, other: str) -> str:
    """A reason to show to the client. It does not reveal our own network. other: who was asked"""
    match error:
        case TimeoutError():
            return f"{other} did not answer in time"
        case ClientConnectorDNSError():
            return "the host's name does not resolve"
        case ClientSSLError():
            return f"no TLS connection: {error}"
        case ClientConnectorError(os_error=PrivateAddressError() as refusal):
            return str(refusal)
        case ClientConnectorError(os_error=OSError(errno=number)):
            return f"no connection: {os.strerror(number) if number else 'none of the addresses answers'}"
    return f"the connection broke: {type(error).__name__}"
