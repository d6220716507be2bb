"""Fixtures for the calls of all clients. Each client's own environment runs them."""

import os

import pytest


@pytest.fixture(scope="session")
def url() -> str:
    """The root of a running server with the embedded model and its aliases."""
    return os.environ["MIDSTEP_URL"]
