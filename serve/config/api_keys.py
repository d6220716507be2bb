"""API keys: the section `api_keys` of the configuration, and whose key a request comes with.

A key has 256 random bits, so its SHA-256 is all that is kept of it. Nobody can try so many, which is what the
slow hashes of passwords are for.
"""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from secrets import token_urlsafe
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat

from serve.config.schema import Section
from serve.errors import InvalidApiKeyError

KEY_PREFIX = "mst_"
_KEY_BYTES = 32
# Replicate's older clients say Token.
_SCHEMES = ("bearer", "token")


def new_key() -> str:
    return KEY_PREFIX + token_urlsafe(_KEY_BYTES)


def key_sha256(key: str) -> str:
    """In hexadecimal, as the configuration has it."""
    return sha256(key.encode()).hexdigest()


def _no_key(text: str) -> str:
    if text.startswith(KEY_PREFIX):
        raise ValueError("this is a key itself; only its SHA-256 belongs here")
    return text


class ApiKeyConfig(Section):
    """A key that requests may come with."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = Field(
        description="the client's; keys of one name are of one client, so that it can change them"
    )
    key_sha256: Annotated[str, AfterValidator(_no_key), Field(pattern=r"^[0-9a-fA-F]{64}$")] = Field(
        description="64 hexadecimal digits, as `midstep key NAME` prints them"
    )
    device_seconds_per_minute: PositiveFloat | None = Field(
        None, description="of denoising that the client may ask for; `null`: as much as there is"
    )


def _agreeing(api_keys: tuple[ApiKeyConfig, ...]) -> tuple[ApiKeyConfig, ...]:
    for index, one in enumerate(api_keys):
        for earlier_index, earlier in enumerate(api_keys[:index]):
            if one.key_sha256.lower() == earlier.key_sha256.lower():
                raise ValueError(f"api_keys[{index}].key_sha256: api_keys[{earlier_index}] has the same one")
            limit, earlier_limit = one.device_seconds_per_minute, earlier.device_seconds_per_minute
            if one.name == earlier.name and limit != earlier_limit:
                raise ValueError(
                    f"api_keys[{index}].device_seconds_per_minute: {limit} is not the {earlier_limit} of "
                    f"api_keys[{earlier_index}], which is of the same client"
                )
    return api_keys


ApiKeys = Annotated[tuple[ApiKeyConfig, ...], AfterValidator(_agreeing)]


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks. device_seconds_per_minute: what it may ask for in all; None: as much as there is."""

    name: str
    device_seconds_per_minute: float | None = None


EVERYBODY = Client("")  # where there are no keys


class Clients:
    """Those whose keys the configuration has; where it has none, everybody is one client."""

    def __init__(self, api_keys: Sequence[ApiKeyConfig]) -> None:
        self._clients = [
            (bytes.fromhex(one.key_sha256), Client(one.name, one.device_seconds_per_minute))
            for one in api_keys
        ]

    def of(self, authorization: str | None) -> Client:
        """authorization: the header of that name. Raises InvalidApiKeyError."""
        if not self._clients:
            return EVERYBODY
        scheme, _, key = (authorization or "").strip().partition(" ")
        if scheme.lower() not in _SCHEMES:
            raise InvalidApiKeyError("An API key is required, as in `Authorization: Bearer mst_...`.")
        given = sha256(key.strip().encode()).digest()
        found = None
        for known, client in self._clients:
            # All of them to their ends: the time it takes tells nothing of any key.
            if hmac.compare_digest(known, given):
                found = client
        if found is None:
            raise InvalidApiKeyError("The API key in `Authorization` is not one that is known here.")
        return found
