"""Summaries of made-up outcomes, their files and plots, and the command around them."""

import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from cluster import cli
from cluster.bench.answers import Answer, Kind
from cluster.bench.load import RequestOutcome
from cluster.bench.mix import PlannedRequest
from cluster.bench.report import plot, summarize


def outcome(
    due_s: float,
    latency_s: float,
    kind: Kind = Kind.COMPLETED,
    preview_s: float | None = None,
    images: int = 1,
) -> RequestOutcome:
    request = PlannedRequest(due_s, "a star", seed=0, num_images=images)
    preview_at = None if preview_s is None else due_s + preview_s
    num_images = images if kind is Kind.COMPLETED else 0
    return RequestOutcome(request, due_s + 0.001, Answer(kind, due_s + latency_s, num_images, preview_at))


def test_percentiles_are_exact() -> None:
    """Latencies are 1, 2, ... 101 s in any order, so percentile p is p + 1."""
    summary = summarize([outcome(float(index), 1.0 + index * 37 % 101) for index in range(101)])
    assert summary.latency_mean_s == pytest.approx(51)
    assert summary.latency_p50_s == pytest.approx(51)
    assert summary.latency_p90_s == pytest.approx(91)
    assert summary.latency_p95_s == pytest.approx(96)
    assert summary.latency_p99_s == pytest.approx(100)
    assert summary.generator_lag_p99_s == pytest.approx(0.001)
    assert summary.trusted


def test_throughput_is_of_completed_images_from_first_due_to_last_completion() -> None:
    outcomes = [
        outcome(2, 3, images=4, preview_s=1),
        outcome(4, 6, images=2, preview_s=3),
        outcome(6, 1, Kind.BUSY, images=8),
        outcome(8, 90, Kind.TIMEOUT, images=8),
    ]
    summary = summarize(outcomes, slo_s=5)
    assert summary.span_s == 8, "from second 2 to second 10; what was never completed does not count"
    assert summary.images_per_s == 6 / 8
    assert summary.goodput_images_per_s == 4 / 8
    assert summary.offered_requests_per_s == 3 / 6
    assert summary.offered_images_per_s == pytest.approx(3 / 6 * 22 / 4)
    assert summary.counts == {"completed": 2, "busy": 1, "timeout": 1}
    assert (summary.first_preview_p50_s, summary.first_preview_p95_s) == pytest.approx((2, 2.9))


def test_a_server_that_soon_only_refuses_does_not_look_fast() -> None:
    outcomes = [outcome(0, 1), *(outcome(float(index), 0.1, Kind.BUSY) for index in range(1, 101))]
    assert summarize(outcomes).images_per_s == 1 / 100


def test_where_nothing_was_completed_there_is_no_latency() -> None:
    summary = summarize([outcome(0, 1, Kind.TIMEOUT)], slo_s=1)
    assert (summary.latency_p50_s, summary.images_per_s, summary.first_preview_p50_s) == (None, 0, None)
    assert summary.offered_requests_per_s is None


def test_a_plot_is_a_picture_even_of_a_run_without_answers(tmp_path: Path) -> None:
    good, bad = summarize([outcome(0, 1), outcome(1, 2)], slo_s=1), summarize([outcome(0, 1, Kind.BUSY)])
    plot({"one": [good, bad], "other": [bad]}, tmp_path / "folder" / "plot.png")
    with Image.open(tmp_path / "folder" / "plot.png") as picture:
        assert picture.size == (1650, 750)


class Answering(BaseHTTPRequestHandler):
    """Counts its requests and answers with a picture."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.bodies.append((self.path, json.loads(body)))  # type: ignore[attr-defined]
        answer = b'{"data": [{}]}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.bodies: list[tuple[str, dict[str, object]]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_command_loads_reports_and_draws(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "body.json"
    template.write_text('{"q": "{prompt}", "steps": "{num_inference_steps}"}')
    words = [
        *("bench", "--system", f"one={server.url}", "--system", f"other={server.url}"),
        *("--arrivals", "constant", "--rates", "10,20", "--duration", "0.5", "--warmup", "3"),
        *("--steps", "4:1,8:1", "--slo-s", "1", "--path", "make", "--body", str(template)),
    ]
    assert cli.main([*words, "--output", str(tmp_path / "out")]) == 0
    assert len(server.bodies) == 2 * (3 + 5) + 2 * (3 + 10)
    assert {path for path, _ in server.bodies} == {"/make"}
    assert {body["steps"] for _, body in server.bodies} == {4, 8}
    text = (tmp_path / "out" / "one.json").read_text()
    assert str(tmp_path) not in text
    assert "127.0.0.1" not in text
    result = json.loads(text)
    assert [summary["num_requests"] for summary in result["summaries"]] == [5, 10]
    assert result["settings"]["mix"]["num_inference_steps"] == {"4": 1.0, "8": 1.0}
    told = capsys.readouterr().out
    assert re.findall(r"(?m)^ *(one|other) +(?:10|20)\.00 +(\d+) *$", told) == [
        ("one", "5"),
        ("one", "10"),
        ("other", "5"),
        ("other", "10"),
    ]

    files = [str(tmp_path / "out" / f"{name}.json") for name in ("one", "other")]
    cli.main(["bench", "--plot", *files, "--output", str(tmp_path / "both.png")])
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.format == "PNG"


def test_the_report_says_how_many_requests_started_from_pictures(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = ["--arrivals", "constant", "--rate", "20", "--duration", "0.5", "--picture-size", "96x64"]
    tasks = ["--tasks", "txt2img:1,img2img:1,inpaint:1", "--strengths", "0.5", "--edit-path", "edit"]
    assert cli.main(["bench", "--url", server.url, *load, *tasks, "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "midstep.json").read_text())
    [summary] = result["summaries"]
    edits = [body for path, body in server.bodies if path == "/edit"]
    assert {body["strength"] for body in edits} == {0.5}
    masks = sum("mask" in body for body in edits)
    counts = {"txt2img": 10 - len(edits), "img2img": len(edits) - masks, "inpaint": masks}
    assert summary["tasks"] == counts
    assert all(counts.values())
    assert result["settings"]["mix"]["tasks"] == {"txt2img": 1.0, "img2img": 1.0, "inpaint": 1.0}
    told = capsys.readouterr().out
    assert re.search(r"(?m)^ *midstep +20\.00 +" + " +".join(map(str, counts.values())) + r" *$", told)

    del summary["tasks"]  # as in results of earlier versions
    (tmp_path / "earlier.json").write_text(json.dumps(result))
    words = ["--plot", str(tmp_path / "earlier.json"), "--output", str(tmp_path / "plot.png")]
    assert cli.main(["bench", *words]) == 0
    assert "img2img" not in capsys.readouterr().out


def test_a_body_without_the_picture_is_not_sent_as_an_edit(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "body.json"
    template.write_text('{"q": "{prompt}"}')
    words = ["--rate", "20", "--duration", "0.5", "--tasks", "img2img", "--body", str(template)]
    with pytest.raises(SystemExit):
        cli.main(["bench", "--url", server.url, *words])
    assert re.search(r"argument --body: has no \{image\}, but \d+ requests start", capsys.readouterr().err)
    assert server.bodies == []


def test_a_command_that_got_no_answer_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--url", "http://127.0.0.1:1", "--arrivals", "constant", "--rate", "20", "--duration", "0.1"]
    with pytest.raises(SystemExit, match="no request was completed"):
        cli.main(["bench", *words, "--output", str(tmp_path)])
    assert "2 times midstep: transport error: ClientConnectorError" in " ".join(
        capsys.readouterr().out.split()
    )


URL = ["--url", "http://127.0.0.1:1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "argument --url: is required, or --system"),
        (["--url", "localhost:8000"], "argument --url: 'localhost:8000' is not a URL such as"),
        (["--system", "a"], "argument --system: 'a' is not NAME=URL"),
        (["--system", "a=http://x", "--system", "a=http://y"], "argument --system: 'a' is given twice"),
        (URL, "argument --rate: is required"),
        ([*URL, "--rate", "1,0"], "argument --rate/--rates: '0' is not above 0"),
        ([*URL, "--rate", "x"], "argument --rate/--rates: 'x' is not a number of at least 0"),
        ([*URL, "--rate", "1", "--speed-up", "2"], "argument --speed-up: needs --arrivals trace"),
        (
            [*URL, "--rate", "1", "--steps", "4:20,x:1"],
            "argument --steps: 'x:1' is not VALUE or VALUE:WEIGHT",
        ),
        (
            [*URL, "--rate", "1", "--tasks", "upscale:1"],
            "argument --tasks: 'upscale:1' is not VALUE or VALUE:WEIGHT: 'upscale' is none of txt2img",
        ),
        ([*URL, "--rate", "1", "--strengths", "2:1"], "argument --strengths: '2:1' is not VALUE or VALUE"),
        ([*URL, "--rate", "1", "--picture-size", "512"], "argument --picture-size: '512' is not \"WIDTHx"),
        ([*URL, "--rate", "1", "--sizes", "512"], "argument --sizes: '512' is not VALUE or VALUE:WEIGHT"),
        ([*URL, "--rate", "1", "--mix", "/nowhere"], "argument --mix: /nowhere: No such file or directory"),
        ([*URL, "--rate", "1", "--body", "/nowhere"], "argument --body: /nowhere: No such file or directory"),
        ([*URL, "--rate", "0.001", "--duration", "1"], "argument --duration: no request falls due"),
        (
            [*URL, "--arrivals", "poisson", "--rate", "1", "--trace", "x"],
            "argument --trace: needs --arrivals trace",
        ),
        ([*URL, "--arrivals", "trace"], "argument --trace: is required with --arrivals trace"),
        ([*URL, "--arrivals", "trace", "--trace", "/nowhere"], "argument --trace: /nowhere: No such file"),
        ([*URL, "--arrivals", "burst"], "argument --arrivals: 'burst' is not one of"),
        ([*URL, "--rat", "1"], "No such option '--rat'"),
        (["--plot", __file__], "is not a result of midstep bench: the file: Invalid JSON"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_the_extra_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cluster.bench.command", "cluster.bench.progress"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(
        SystemExit,
        match=r"needs rich.progress, which is not installed: .*python\S* -m pip install .*\[bench\]",
    ):
        cli.main(["bench"])
