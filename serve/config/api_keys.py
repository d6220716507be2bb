"""The section `api_keys` of the configuration, and new keys.

A key has 256 random bits, so only its SHA-256 is stored. Nobody can try that many keys. Slow hashes, as for
passwords, are only needed where somebody could.
"""

from hashlib import sha256
from secrets import token_urlsafe
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat

from serve.config.schema import Section

KEY_PREFIX = "mst_"
_KEY_BYTES = 32


def new_key() -> str:
    return KEY_PREFIX + token_urlsafe(_KEY_BYTES)


def key_sha256(key: str) -> str:
    """The SHA-256 of a key in hexadecimal, as in the configuration."""
    return sha256(key.encode()).hexdigest()


def _no_key(text: str) -> str:
    if text.startswith(KEY_PREFIX):
        raise ValueError("this is a key itself; only its SHA-256 belongs here")
    return text


class ApiKeyConfig(Section):
    """A key that requests may use."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = Field(
        description="Name of the client; several keys of one name are one client, so that it can change them"
    )
    key_sha256: Annotated[str, AfterValidator(_no_key), Field(pattern=r"^[0-9a-fA-F]{64}$")] = Field(
        description="SHA-256 of the key in hexadecimal, as `midstep key NAME` prints it"
    )
    device_seconds_per_minute: PositiveFloat | None = Field(
        None, description="Seconds of denoising that the client may ask for in a minute; `null`: no limit"
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
