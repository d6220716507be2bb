"""The API key that commands send to a server: it comes from the environment and is never shown."""

import os

import click

KEY_VARIABLE = "MIDSTEP_API_KEY"
KEY_HELP = f"Each server is sent the API key in the environment variable {KEY_VARIABLE}, if that is set."


def api_key() -> str | None:
    """The key, without surrounding white space such as the newline that ends a secret's file.

    Raises click.UsageError, which does not show the key.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise click.UsageError(f"{KEY_VARIABLE}: is not an API key; use ASCII letters, digits and signs")
    return key or None
