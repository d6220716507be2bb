"""The command line as a whole: the imports of its commands, and their error messages."""

import json
import subprocess
import sys

import pytest

from cluster.cli import main

HEAVY = {"torch", "ray", "pydantic", "numpy", "matplotlib", "aiohttp", "yaml", "httpx", "rich"}
MODELS = {"torch", "diffusers", "transformers", "huggingface_hub", "sympy"}
# httpx imports rich for its own command line, if rich is installed.
ASKING = {"httpx", "rich"}
NOWHERE = ["--url", "http://127.0.0.1:1"]


def imported(arguments: list[str]) -> set[str]:
    """The heavy packages that a command imports in a separate process."""
    code = """
import json, sys
from cluster.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--help"], set()),
        (["jobs", "--help"], set()),
        (["generate", "--help"], set()),
        (["jobs", "list", *NOWHERE], ASKING),
        (["generate", "a star", *NOWHERE], ASKING),
        (["generate", "a star", "--image", "http://127.0.0.1:1", *NOWHERE], ASKING),
        (["key", "alice"], {"pydantic"}),
    ],
)
def test_a_command_imports_what_it_needs(arguments: list[str], needed: set[str]) -> None:
    assert imported(arguments) <= needed


@pytest.mark.parametrize(
    "what_is_run",
    [
        "import cluster.server, cluster.cli; cluster.cli.main(['check', 'serve_config.yaml'])",
        "import serve.app; serve.app.app",
        "import cluster.adapters.command",
        "import serve.ingress",
        "import serve.runner",
        "import serve.calls.routing, serve.capacity.autoscaling",  # in Serve's controller
    ],
)
def test_what_runs_no_model_imports_none(what_is_run: str) -> None:
    code = f"import json, sys\n{what_is_run}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not MODELS & set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "midstep: No such command 'nothing'."),
        (["jobs", "wait"], "midstep jobs wait: argument ID: is required"),
        (["generate", "a star", "--width", "x"], "midstep generate: argument --width: 'x' is not a valid"),
        (["generate", "a star", "--url", "x"], "midstep generate: argument --url: 'x' is not a URL"),
        (["check"], "midstep check: argument FILE: is required"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_help_has_a_line_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out.split("Commands:")[1]
    names = "adapters bench check generate jobs key keys models plan profile rehearse run"
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line[2] != " "] == (
        names.split()
    )
