"""The clients whose API keys are in the configuration."""

import base64
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from serve.config.api_keys import ApiKeyConfig
from serve.errors import InvalidApiKeyError

# Replicate's older clients send Token.
_SCHEMES = ("bearer", "token")


@dataclass(frozen=True, slots=True)
class Client:
    """A client. device_seconds_per_minute: its limit in all; None for no limit"""

    name: str
    device_seconds_per_minute: float | None = None


EVERYBODY = Client("")  # used without keys


class Clients:
    """The clients whose keys the configuration has. Without keys, everybody is one client."""

    def __init__(self, api_keys: Sequence[ApiKeyConfig]) -> None:
        self._clients = [
            (bytes.fromhex(one.key_sha256), Client(one.name, one.device_seconds_per_minute))
            for one in api_keys
        ]

    def of(self, authorization: str | None, is_basic_allowed: bool = False) -> Client:
        """The client of a request. authorization: the header of that name. Raises InvalidApiKeyError.

        is_basic_allowed: whether the key may come as the password of HTTP Basic, beside any user's name
        """
        if not self._clients:
            return EVERYBODY
        scheme, _, key = (authorization or "").strip().partition(" ")
        if is_basic_allowed and scheme.lower() == "basic":
            key = _password(key)
        elif scheme.lower() not in _SCHEMES:
            raise InvalidApiKeyError("An API key is required, as in `Authorization: Bearer mst_...`.")
        given = sha256(key.strip().encode()).digest()
        found = None
        for known, client in self._clients:
            # Compares all keys to their ends, so that the time reveals nothing about any key.
            if hmac.compare_digest(known, given):
                found = client
        if found is None:
            raise InvalidApiKeyError("The API key in `Authorization` is not one that is known here.")
        return found

    def signature(self, name: str, text: str) -> str:
        """Proof that a URL with this text was made for the named client, who has a key here."""
        return _signature(self._keys(name)[0], text)

    def is_signature(self, name: str, text: str, signature: str) -> bool:
        """Whether it was made for the named client. Revoking a key also revokes its signatures."""
        made = (_signature(key, text) for key in self._keys(name))
        return any(hmac.compare_digest(one.encode(), signature.encode()) for one in made)

    def _keys(self, name: str) -> list[bytes]:
        """The keys of the client, as stored. Without keys, nothing is secret for the only client."""
        if not self._clients:
            return [b""] if name == EVERYBODY.name else []
        return [known for known, client in self._clients if client.name == name]


def _password(credentials: str) -> str:
    """The password of HTTP Basic; empty if there is none."""
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _signature(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), sha256).hexdigest()
