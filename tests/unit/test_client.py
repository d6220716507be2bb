"""The command line's HTTP client: whom it tells its API key."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.client.predictions import Predictions
from serve.cli import main

DONE = {"id": "x", "status": "succeeded", "progress": 1.0, "error": None, "created_at": "now", "input": {}}
Seen = list[tuple[str, str | None]]


@pytest.fixture
def server() -> Iterator[tuple[str, Seen]]:
    """Its URL, and what it was asked with which `Authorization`. Every prediction is done."""
    seen: Seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((f"{self.command} {self.path}", self.headers["authorization"]))
            self.rfile.read(int(self.headers["content-length"] or 0))
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("location", "/picture")
                self.end_headers()
                return
            url = f"http://{self.headers['host']}/moved"
            answers = {
                "/picture": b"picture",
                "/v1/models": json.dumps({"data": [{"id": "shapes"}]}).encode(),
                "/v1/predictions/x/stream": b"event: done\ndata: {}\n\n",
            }
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers.get(self.path, json.dumps(DONE | {"output": [url]}).encode()))

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("key", ["mst_secret", None])
def test_the_environments_key_goes_to_the_server_and_to_no_files(
    key: str | None, server: tuple[str, Seen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, seen = server
    if key is None:
        monkeypatch.delenv("MIDSTEP_API_KEY", raising=False)
    else:
        monkeypatch.setenv("MIDSTEP_API_KEY", key)
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(
        sys, "argv", ["midstep", "generate", "a star", "--json", "--url", url, "-o", str(picture)]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert picture.read_bytes() == b"picture"
    sent = key and f"Bearer {key}"
    assert dict(seen) == {
        "GET /v1/models": sent,
        "POST /v1/predictions": sent,
        "GET /v1/predictions/x": sent,
        "GET /v1/predictions/x/stream": sent,
        "GET /moved": None,
        "GET /picture": None,
    }


def test_an_idempotency_key_is_sent_beside_it(server: tuple[str, Seen]) -> None:
    url, seen = server
    with closing(Predictions(url, "mst_secret")) as predictions:
        predictions.create("shapes", {"prompt": "a star"}, key="k")
    assert seen == [("POST /v1/predictions", "Bearer mst_secret")]


@pytest.mark.parametrize(
    "arguments", [["generate", "--help"], ["jobs", "--help"], ["jobs", "wait", "--help"], ["bench", "--help"]]
)
def test_help_names_the_variable(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["midstep", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert "MIDSTEP_API_KEY" in capsys.readouterr().out
