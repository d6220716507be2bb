"""The command line's HTTP client: who gets its API key, how it follows a job, and how it ends."""

import base64
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.client.pictures import MAX_DATA_URL_BYTES
from cluster.client.predictions import Predictions, ServerError
from serve.http.replicate.schema import read_body

DONE = {"id": "x", "status": "succeeded", "progress": 1.0, "error": None, "created_at": "now"}
INPUT = {"prompt": "A star, *large*\nand/or red", "seed": 7}
NEWS = b"id: 0-5\nevent: logs\ndata: 25%\n\n"
END = b"id: 1-20\nevent: done\ndata: {}\n\n"


@dataclass
class Server:
    """seen: requests with their `Authorization`; resumed: event ids from which streams were resumed

    statuses: of the prediction at each look, the last one for ever after
    streams: what each stream sends before it breaks, or the status of its refusal
    on_stream: called when a stream is requested
    picture: the picture, or the status of its refusal
    anything: what it answers to everything, if it is another server
    bodies: by path, the last one of each
    """

    url: str = ""
    bodies: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    resumed: list[str | None] = field(default_factory=list)
    statuses: list[str] = field(default_factory=lambda: ["succeeded"])
    streams: list[bytes | int] = field(default_factory=lambda: [END])
    on_stream: Callable[[], object] = bool
    picture: bytes | int = b"picture"
    anything: bytes | None = None

    def prediction(self) -> bytes:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        error = "It is cursed." if status == "failed" else None
        return json.dumps(
            DONE | {"input": INPUT, "status": status, "error": error, "output": [f"{self.url}/moved.png"]}
        ).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    shown = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.seen.append((f"{self.command} {self.path}", self.headers["authorization"]))
            shown.bodies[self.path] = self.rfile.read(int(self.headers["content-length"] or 0))
            if self.path == "/moved.png":
                self.send_response(302)
                self.send_header("location", "/picture")
                self.end_headers()
            elif self.path.endswith("/stream"):
                self.stream()
            elif isinstance(shown.picture, int) and self.path == "/picture":
                self.send_error(shown.picture)
            else:
                answers = {
                    "/picture": shown.picture,
                    "/v1/models": b'{"data": [{"id": "shapes"}]}',
                    "/v1/files": b'{"urls": {"get": "http://here/v1/files/f/download?signature=s"}}',
                }
                self.send_response(200)
                self.end_headers()
                self.wfile.write(shown.anything or answers.get(self.path) or shown.prediction())

        def do_DELETE(self) -> None:
            shown.seen.append((f"{self.command} {self.path}", self.headers["authorization"]))
            self.send_response(204)
            self.end_headers()

        do_POST = do_GET

        def handle(self) -> None:
            with suppress(ConnectionError):  # from a client that has left
                super().handle()

        def stream(self) -> None:
            shown.on_stream()
            shown.resumed.append(self.headers["last-event-id"])
            sent = shown.streams.pop(0) if len(shown.streams) > 1 else shown.streams[0]
            self.send_response(200 if isinstance(sent, bytes) else sent)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(sent if isinstance(sent, bytes) else b'{"detail": "not now"}'.ljust(1000))

        def log_message(self, *_: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shown.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=[0.01])
    thread.start()
    yield shown
    http.shutdown()
    thread.join()
    http.server_close()


def midstep(*arguments: str) -> int | str | None:
    """The command's exit status, or its error message."""
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("key", ["mst_secret", None])
def test_the_environments_key_goes_to_the_server_and_to_no_files(
    key: str | None, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if key is None:
        monkeypatch.delenv("MIDSTEP_API_KEY", raising=False)
    else:
        monkeypatch.setenv("MIDSTEP_API_KEY", key)
    picture = tmp_path / "picture.png"
    server.statuses = ["starting", "processing", "succeeded"]
    arguments = ("generate", "a star", "--json", "--url", server.url, "-o", str(picture))
    assert midstep(*arguments) == 0
    assert picture.read_bytes() == b"picture"
    sent = key and f"Bearer {key}"
    assert dict(server.seen) == {
        "GET /v1/models": sent,
        "POST /v1/predictions": sent,
        "GET /v1/predictions/x": sent,
        "GET /v1/predictions/x/stream": sent,
        "GET /moved.png": None,
        "GET /picture": None,
    }


def test_an_idempotency_key_is_sent_beside_it(server: Server) -> None:
    with closing(Predictions(server.url, "mst_secret")) as predictions:
        predictions.create("shapes", {"prompt": "a star"}, key="k")
    assert server.seen == [("POST /v1/predictions", "Bearer mst_secret")]


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--url", "http://127.0.0.1:x"],
        ["list", "--url", "ftp://x"],
        ["submit", "a", "--idempotency-key", "é"],
    ],
)
def test_what_cannot_be_sent_is_refused_in_a_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert midstep("jobs", *arguments) == 2
    assert capsys.readouterr().err.startswith("midstep jobs")


def test_another_server_than_ours_is_named(server: Server) -> None:
    server.anything = b"<html>"
    with closing(Predictions(server.url)) as predictions:
        with pytest.raises(ServerError, match="answered, but not as Midstep does: <html>"):
            predictions.get("x")
        with pytest.raises(ServerError, match="answered, but not as Midstep does: <html>"):
            predictions.newest()


@pytest.mark.parametrize(
    "arguments", [["generate", "--help"], ["jobs", "--help"], ["jobs", "wait", "--help"], ["bench", "--help"]]
)
def test_help_names_the_variable(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert midstep(*arguments) == 0
    assert "MIDSTEP_API_KEY" in capsys.readouterr().out


def followed(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prediction's statuses, until it is final or the client gives up."""
    monkeypatch.setattr("cluster.client.predictions.RECONNECTION_PAUSE_S", 0.0)
    with closing(Predictions(server.url)) as predictions:
        return [prediction["status"] for prediction in predictions.follow("x")]


def test_a_stream_that_breaks_is_taken_up_where_it_ended(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.statuses = ["starting", "processing", "processing", "succeeded"]
    server.streams = [b"", NEWS, 503, b": ping\n\n", NEWS.replace(b"0-5", b"0-9"), END]
    assert followed(server, monkeypatch) == ["starting", "processing", "processing", "succeeded"]
    assert server.resumed == [None, None, "0-5", "0-5", "0-5", "0-9"]


def test_a_stream_that_breaks_for_ever_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.client.predictions.MAX_RECONNECTIONS", 3)
    server.statuses = ["processing"]
    server.streams = [b"", NEWS, b""]
    with pytest.raises(ServerError, match="the stream has ended"):
        followed(server, monkeypatch)
    assert server.resumed == [None, None, *["0-5"] * 3], "counted anew since there was news"


def test_a_stream_that_is_refused_is_not_asked_for_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.statuses = ["processing"]
    server.streams = [404]
    with pytest.raises(ServerError, match="not now"):
        followed(server, monkeypatch)
    assert server.resumed == [None]


@pytest.mark.parametrize(
    ("command", "status", "code", "shown"),
    [
        ("get", "processing", 0, "x: processing, 100%"),
        ("get", "succeeded", 0, "/moved.png"),
        ("get", "failed", 1, "failed: It is cursed."),
        ("get", "canceled", 1, "x: canceled"),
        ("wait", "failed", 1, "failed: It is cursed."),
        ("cancel", "canceled", 0, "x: canceled"),
        ("cancel", "succeeded", 0, "x: succeeded"),
        ("cancel", "failed", 1, "failed: It is cursed."),
    ],
)
def test_what_is_shown_of_a_job_and_how_it_ends(
    command: str,
    status: str,
    code: int,
    shown: str,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server.statuses = [status]
    assert midstep("jobs", command, "x", "--url", server.url) == code
    output = capfd.readouterr()
    assert shown in (output.err if status == "failed" else output.out)
    method, path = ("POST", "/cancel") if command == "cancel" else ("GET", "")
    assert server.seen == [(f"{method} /v1/predictions/x{path}", None)]


@pytest.mark.parametrize(
    ("options", "shown"), [([], "x: deleted\n"), (["--json"], '{"id": "x", "deleted": true}\n')]
)
def test_a_job_is_deleted(
    options: list[str], shown: str, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    assert midstep("jobs", "delete", "x", "--url", server.url, *options) == 0
    assert capfd.readouterr().out == shown
    assert server.seen == [("DELETE /v1/predictions/x", None)]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Enables Ctrl-C, which processes started in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("arguments", "is_canceled"), [(["generate", "a star"], True), (["jobs", "wait", "x"], False)]
)
def test_ctrl_c_cancels_what_was_just_handed_in_and_nothing_else(
    arguments: list[str], is_canceled: bool, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.statuses = ["processing"]
    server.on_stream = partial(signal.pthread_kill, threading.main_thread().ident, signal.SIGINT)
    assert midstep(*arguments, "--json", "--url", server.url) == 130
    assert (("POST /v1/predictions/x/cancel", None) in server.seen) == is_canceled


def generate(server: Server, *options: str) -> int | str | None:
    return midstep("generate", "a star", "--url", server.url, *options)


def sent_input(server: Server) -> dict[str, object]:
    """What was submitted, in a body that Midstep takes."""
    raw = server.bodies["/v1/predictions"]
    read_body(raw)
    given: dict[str, object] = json.loads(raw)["input"]
    return given


PNG = b"\x89PNG\r\n\x1a\n"
LARGE = PNG.ljust(MAX_DATA_URL_BYTES + 1, b"\0")
UPLOADED = "http://here/v1/files/f/download?signature=s"


def data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (PNG.ljust(MAX_DATA_URL_BYTES, b"\0"), "image/png"),
        (b"\xff\xd8\xff\xe0...", "image/jpeg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
    ],
    ids=["png", "jpeg", "webp"],
)
def test_a_small_picture_is_sent_in_the_request_with_the_type_of_its_bytes(
    data: bytes, media_type: str, server: Server, tmp_path: Path
) -> None:
    picture = tmp_path / "picture.txt"
    picture.write_bytes(data)
    assert generate(server, "--json", "--image", str(picture), "--strength", "0.5") == 0
    assert sent_input(server) == {
        "prompt": "a star",
        "image": data_url(media_type, data),
        "prompt_strength": 0.5,
    }


def test_a_large_picture_is_uploaded_and_named_by_its_url(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIDSTEP_API_KEY", "mst_secret")
    picture = tmp_path / "my picture.png"
    picture.write_bytes(LARGE)
    url = "https://far/mask.png"
    words = ("--mask", url, "--padding-mask-crop", "32", "--preserve-unmasked")
    assert generate(server, "--json", "--image", str(picture), *words) == 0
    assert server.seen[0] == ("POST /v1/files", "Bearer mst_secret")
    head, _, content = server.bodies["/v1/files"].partition(b"\r\n\r\n")
    assert b'name="content"; filename="my picture.png"\r\nContent-Type: image/png' in head
    assert content.startswith(LARGE)
    assert sent_input(server) == {
        "prompt": "a star",
        "image": UPLOADED,
        "mask": url,
        "padding_mask_crop": 32,
        "preserve_unmasked": True,
    }


def test_a_submission_that_may_be_repeated_has_the_same_bytes_each_time(
    server: Server, tmp_path: Path
) -> None:
    """An uploaded file has another URL each time, and a key stands for one body."""
    picture = tmp_path / "picture.png"
    picture.write_bytes(LARGE)
    words = ("submit", "a star", "--image", str(picture), "--idempotency-key", "k", "--url", server.url)
    assert midstep("jobs", *words) == 0
    assert sent_input(server)["image"] == data_url("image/png", LARGE)
    assert "/v1/files" not in server.bodies


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file or directory"),
        (b"", "is empty"),
        (b"<html>", "begins neither as a PNG nor as a JPEG nor as a WebP file"),
    ],
)
def test_what_is_no_picture_is_told_before_anything_is_sent(
    content: bytes | None, problem: str, server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.png"
    if content is not None:
        picture.write_bytes(content)
    assert generate(server, "--image", "https://far/star.png", "--mask", str(picture)) == 2
    assert f"argument --mask: {picture}: {problem}" in capfd.readouterr().err
    assert server.seen == []


def test_an_upload_that_is_refused_is_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(LARGE)
    server.anything = b"<html>"
    assert "/v1/files answered, but not as Midstep does: <html>" in str(
        generate(server, "--image", str(picture))
    )
    assert "/v1/predictions" not in server.bodies


def test_a_second_pass_is_asked_for_by_its_scale(server: Server) -> None:
    words = ("--hires", "2", "--hires-upscaler", "latent", "--hires-strength", "0.4", "--hires-steps", "10")
    assert generate(server, "--json", *words) == 0
    assert sent_input(server) == {
        "prompt": "a star",
        "hires": {"scale": 2.0, "upscaler": "latent", "strength": 0.4, "num_inference_steps": 10},
    }
    assert generate(server, "--json", "--hires", "1.5") == 0
    assert sent_input(server)["hires"] == {"scale": 1.5}


def test_the_model_is_the_named_one_or_the_servers_first(server: Server) -> None:
    for words, model in (((), "shapes"), (("--model", "outlines"), "outlines")):
        assert generate(server, "--json", *words) == 0
        assert json.loads(server.bodies["/v1/predictions"])["version"] == model


def test_adapters_are_named_with_their_scales(server: Server) -> None:
    url = "https://example.com:8/x"
    words = ("--lora", "stripes:0.8", "--lora", "styles/zebra", "--lora", url, "--lora", f"{url}:-1")
    assert generate(server, "--json", *words) == 0
    assert sent_input(server)["loras"] == [
        {"id": "stripes", "scale": 0.8},
        {"id": "styles/zebra"},
        {"id": url},
        {"id": url, "scale": -1.0},
    ]
    assert generate(server, "--json") == 0
    assert "loras" not in sent_input(server)
    for scale in ("nan", "-inf"):
        assert generate(server, "--lora", f"stripes:{scale}") == 2


def test_a_key_is_sent_without_the_newline_that_ends_its_file(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIDSTEP_API_KEY", "mst_secret\n")
    assert midstep("jobs", "get", "x", "--url", server.url) == 0
    assert server.seen == [("GET /v1/predictions/x", "Bearer mst_secret")]


@pytest.mark.parametrize("key", ["mst_se\ncret", "mst_secret\u2026", "mst_se cret"])
@pytest.mark.parametrize(
    "arguments", [["jobs", "list"], ["bench", "--rate", "1"]], ids=lambda arguments: arguments[0]
)
def test_what_is_no_key_is_told_without_being_shown(
    key: str,
    arguments: list[str],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MIDSTEP_API_KEY", key)
    assert midstep(*arguments, "--url", server.url) == 2
    error = capfd.readouterr().err
    assert "MIDSTEP_API_KEY: is not an API key" in error
    assert "cret" not in error
    assert server.seen == []


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
def test_a_server_on_this_machine_is_asked_past_the_proxy(
    name: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
        assert midstep("jobs", "get", "x", "--url", url) == 0
    with pytest.raises(ServerError, match="cannot be reached"), closing(Predictions("http://far")) as far:
        far.get("x")


def test_the_folder_of_a_picture_is_made(server: Server, tmp_path: Path) -> None:
    picture = tmp_path / "missing" / "folder" / "x.png"
    assert generate(server, "-o", str(picture)) == 0
    assert picture.read_bytes() == b"picture"


def test_a_place_that_cannot_be_written_is_told_before_the_picture_is_made(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "x.png"):
        assert generate(server, "-o", str(place)) == 2
        assert "argument -o/--output: " in capfd.readouterr().err
    assert server.seen == []


def test_without_a_name_a_picture_is_saved_under_one_that_is_printed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert generate(server) == 0
    name = "a-star-large-and-or-red-7.png"
    assert f"written to {name}\n" in capfd.readouterr().err
    assert (tmp_path / name).read_bytes() == b"picture"
    assert generate(server, "--json") == 0
    assert [path.name for path in tmp_path.iterdir()] == [name], "a script asks for the file it wants"


def test_a_picture_without_a_name_replaces_no_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (b"first", b"second"):
        server.picture = content
        assert generate(server) == 0
    assert (tmp_path / "a-star-large-and-or-red-7.png").read_bytes() == b"first"
    assert "written to a-star-large-and-or-red-7-2.png" in capfd.readouterr().err
    assert (tmp_path / "a-star-large-and-or-red-7-2.png").read_bytes() == b"second"


def test_a_picture_that_cannot_be_fetched_or_saved_is_shown_by_its_url(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"not saved: {server.url}/moved.png"
    server.picture = 410
    assert place in str(generate(server, "-o", str(tmp_path / "x.png")))
    server.picture = b"picture"
    comes_meanwhile = tmp_path / "folder" / "x.png"
    server.statuses, server.on_stream = ["processing", "processing", "succeeded"], comes_meanwhile.mkdir
    assert place in str(generate(server, "-o", str(comes_meanwhile)))
