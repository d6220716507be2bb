"""Webhooks on the wire: one attempt at a time, signed by Standard Webhooks, to public addresses only.

The outbox decides which message is due and what follows from each outcome.
"""

import base64
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random
from secrets import token_bytes
from typing import Self

from aiohttp import ClientError, ClientSession
from aiohttp.abc import AbstractResolver
from standardwebhooks import Webhook as Signer

from serve.errors import InvalidRequestError
from serve.outbound import check_url, failure_reason, outbound_session

_SECRET_PREFIX = "whsec_"

_HOUR_S = 3600.0
# Standard Webhooks 1.0, "deliverability and reliability": seconds since the previous failure.
_RETRY_DELAYS_S = (5.0, 300.0, 1800.0, *(hours * _HOUR_S for hours in (2, 5, 10, 14, 20, 24)))
MAX_ATTEMPTS = 1 + len(_RETRY_DELAYS_S)
_MAX_RETRY_AFTER_S = 24 * _HOUR_S


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver has it."""

    status: int


@dataclass(frozen=True, slots=True)
class RetryIn:
    """The receiver does not have it, or has not confirmed it."""

    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Another attempt would not help."""

    reason: str


Outcome = Delivered | RetryIn | GaveUp


class WebhookSender:
    """Sends signed messages, one attempt per call; opened and closed by `async with`.

    secrets: at least one that `check_secret` accepts; each signs the messages, the first one first
    allow_private: also sends to addresses that are not public, for development
    """

    def __init__(
        self,
        secrets: Sequence[str],
        allow_private: bool,
        timeout_s: float = 15.0,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """Raises ValueError for secrets that cannot be used."""
        if not secrets:
            raise ValueError("webhooks need at least one secret for signing")
        for secret in secrets:
            check_secret(secret)
        self._signers = [Signer(secret) for secret in secrets]
        self._allow_private = allow_private
        self._timeout_s = timeout_s
        self._resolver = resolver
        self._random = Random()
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = outbound_session(self._allow_private, self._timeout_s, self._resolver)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def send(self, message_id: str, url: str, payload: bytes, attempt: int) -> Outcome:
        """Makes one attempt to deliver a message. Returns within `timeout_s`, whatever the receiver does.

        message_id: the same in each attempt
        payload: JSON; the standard asks for less than 20 kB
        attempt: 1 for the first
        """
        assert self._session is not None, "a sender is entered before it sends"
        try:
            target = check_url(url, "webhook", self._allow_private)
        except InvalidRequestError as error:
            return GaveUp(error.detail)
        try:
            async with self._session.post(
                target, data=payload, headers=self._headers(message_id, payload), allow_redirects=False
            ) as response:  # the body is not read: the connection is closed with it
                status, retry_after = response.status, response.headers.get("retry-after", "")
        except (TimeoutError, ClientError, OSError) as error:
            return self._failed(attempt, failure_reason(error, "the receiver"), 0.0)
        if 200 <= status < 300:
            return Delivered(status)
        if status == 410:
            return GaveUp("the receiver answered 410: it is gone")
        redirect = ", and redirects are not followed" if 300 <= status < 400 else ""
        reason = f"the receiver answered {status}{redirect}"
        return self._failed(attempt, reason, retry_after_s(retry_after, time.time()))

    def _headers(self, message_id: str, payload: bytes) -> dict[str, str]:
        now = datetime.now(UTC)
        body = payload.decode()
        return {
            "content-type": "application/json",
            "user-agent": "Midstep-Webhooks",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signer.sign(message_id, now, body) for signer in self._signers),
        }

    def _failed(self, attempt: int, reason: str, at_least_s: float) -> Outcome:
        delay_s = retry_delay_s(attempt, self._random)
        if delay_s is None:
            return GaveUp(f"{reason}; that was the last of {MAX_ATTEMPTS} attempts")
        return RetryIn(max(delay_s, at_least_s), reason)


def retry_delay_s(attempt: int, random: Random) -> float | None:
    """Seconds from this attempt's failure to the next attempt; None if there is none.

    Up to a tenth is added to the standard's delays, so that recovered receivers are not all called at once.
    """
    if attempt >= MAX_ATTEMPTS:
        return None
    return _RETRY_DELAYS_S[attempt - 1] * random.uniform(1.0, 1.1)


def retry_after_s(value: str, now: float) -> float:
    """The seconds that a `Retry-After` asks for, given in seconds or as a date, at most a day; 0 if invalid.

    now: in seconds since the epoch
    """
    if re.fullmatch(r"[0-9]+", value):
        return min(float(value), _MAX_RETRY_AFTER_S)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    # HTTP dates are in GMT. A date without a zone would be taken as local time.
    return min(max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now), _MAX_RETRY_AFTER_S)


def new_secret() -> str:
    """A secret of 32 bytes, in the standard's form."""
    return _SECRET_PREFIX + base64.b64encode(token_bytes(32)).decode()


def check_secret(secret: str) -> None:
    """Raises ValueError, without repeating the secret, if it does not have the standard's form."""
    if not secret.startswith(_SECRET_PREFIX):
        raise ValueError(f"a webhook secret must begin with {_SECRET_PREFIX}")
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except ValueError as error:
        raise ValueError(f"a webhook secret is not base64 after {_SECRET_PREFIX}: {error}") from error
    if not 24 <= len(key) <= 64:
        raise ValueError(f"a webhook secret must have 24 to 64 bytes, and one has {len(key)}")
