"""The display of `midstep run` while an application starts, and once it is ready."""

import io
from pathlib import Path
from typing import Any

import pytest
from ray.serve.schema import HTTPOptionsSchema
from rich.console import Console

from cluster.ready import base_url, ready_block, token_command
from cluster.start import Stage, StartDisplay, stage_of

LOG = Path("/logs/midstep.log")


def application(**deployments: str) -> dict[str, Any]:
    return {"deployments": {name: {"name": name, "status": status} for name, status in deployments.items()}}


@pytest.mark.parametrize(
    ("applications", "measuring", "stage"),
    [
        ([], set(), Stage("Building the application")),
        ([application()], set(), Stage("Building the application")),
        (
            [application(Ingress="HEALTHY", Denoiser="UPDATING")],
            set(),
            Stage("Loading", "ready Ingress; loading Denoiser"),
        ),
        (
            [application(Ingress="HEALTHY", Denoiser="UPDATING", VaeDecoder="UPDATING")],
            {"Denoiser", "Ingress"},
            Stage("Measuring what work costs here", "ready Ingress; measuring Denoiser; loading VaeDecoder"),
        ),
        ([application(Ingress="HEALTHY")], {"Ingress"}, Stage("Waiting for the first answer")),
    ],
)
def test_the_stage_is_what_serve_and_the_replicas_say(
    applications: list[dict[str, Any]], measuring: set[str], stage: Stage
) -> None:
    assert stage_of(applications, measuring) == stage


def test_without_a_terminal_there_is_a_line_for_each_stage() -> None:
    shown = io.StringIO()
    with StartDisplay(Console(file=shown)) as display:
        for stage in (
            Stage("Starting Ray"),
            Stage("Loading", "a"),
            Stage("Loading", "b"),
            Stage("Measuring"),
        ):
            display.show(stage)
    assert shown.getvalue() == "Starting Ray\nLoading\nMeasuring\n"


def test_the_block_leaves_out_pages_that_are_not_there() -> None:
    def status(url: str) -> int:
        return 200 if url.endswith("/docs") else 404

    block = ready_block({"a": "http://x:8000"}, "127.0.0.1:8265", "ray get-auth-token", LOG, status)
    assert [line.split() for line in block[:2]] == [
        ["API", "docs", "http://x:8000/docs"],
        ["API", "http://x:8000/v1"],
    ]
    assert "http://127.0.0.1:8265 asks for the token that `ray get-auth-token` prints" in block[2]
    assert block[3].split() == ["Log", str(LOG)]
    assert "Ctrl-C" in block[4]


def test_the_block_names_each_of_several_applications() -> None:
    block = "\n".join(ready_block({"a": "http://x", "b": "http://x/b"}, "", None, LOG, lambda _: 404))
    assert [line.split() for line in block.splitlines()[:2]] == [
        ["API", "of", "a", "http://x/v1"],
        ["API", "of", "b", "http://x/b/v1"],
    ]
    assert "dashboard" not in block


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({"host": "127.0.0.1"}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0"}, "http://10.0.0.1:8000"),
        ({"host": "::1"}, "http://[::1]:8000"),
        ({"host": "here.example"}, "http://here.example:8000"),
        ({"host": "::", "ssl_keyfile": "key", "ssl_certfile": "cert"}, "https://10.0.0.1:8000"),
    ],
)
def test_the_url_is_one_that_a_client_can_use(options: dict[str, str], url: str) -> None:
    assert base_url(HTTPOptionsSchema(port=8000, **options), reached_at="10.0.0.1") == url


@pytest.mark.parametrize(("mode", "asks"), [("token", True), ("disabled", False), (None, False)])
def test_the_command_that_prints_the_token_is_told_where_one_is_asked_for(
    mode: str | None, asks: bool
) -> None:
    command = token_command({} if mode is None else {"RAY_AUTH_MODE": mode})
    assert (command is not None) == asks
    assert command is None or command.endswith("ray get-auth-token")
