"""Clients of other projects, unmodified, each in a separate environment. Their calls are in tests/clients.

CI runs some of them and `make clients` all, against the application at MIDSTEP_URL if that is set.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.environments import CALLS, PYTHON_CLIENTS, Client, environment, node_packages, python_of

ALL = os.environ.get("MIDSTEP_CLIENTS") == "all"
TIMEOUT_S = 1200


@pytest.fixture
def server_url(request: pytest.FixtureRequest) -> str:
    url: str = os.environ.get("MIDSTEP_URL") or request.getfixturevalue("base_url")
    return url.rstrip("/")


def run(command: list[str | Path], folder: Path, server_url: str) -> None:
    """Shows the output of the calls, and fails if one of them failed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(MIDSTEP_URL=server_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, "a call has failed"


@pytest.mark.parametrize("client", PYTHON_CLIENTS, ids=lambda client: client.name)
def test_a_client_in_python(client: Client, request: pytest.FixtureRequest) -> None:
    if not (ALL or client.in_ci):
        pytest.skip("`make clients` runs it")
    python = python_of(client)
    calls = CALLS / f"{client.name}_calls.py"
    run([python, "-m", "pytest", calls], client.folder, request.getfixturevalue("server_url"))


@pytest.mark.skipif(not ALL, reason="`make clients` runs them")
@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no Node.js on this machine")
def test_clients_in_javascript(server_url: str) -> None:
    folder = node_packages()
    for name in ("openai_calls.mjs", "replicate_calls.mjs", "pictures.mjs"):
        # Python looks for modules in the script's folder.
        shutil.copy(CALLS / name, folder)
    run(["node", "--test", *sorted(path.name for path in folder.glob("*_calls.mjs"))], folder, server_url)
