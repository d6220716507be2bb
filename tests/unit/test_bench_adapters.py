"""Loads with adapters: how many requests are to have, which ones a server offers, and latencies with them."""

import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from cluster import cli
from cluster.bench.adapters import (
    Offered,
    by_place,
    sentence,
    served_adapters,
    weights_by_model,
    with_adapters,
)
from cluster.bench.answers import Answer, Kind
from cluster.bench.arrivals import trace
from cluster.bench.checkpoints import Listed
from cluster.bench.load import RequestOutcome
from cluster.bench.mix import Mix, PlannedRequest, plan, plan_trace, read_mix
from cluster.bench.parts import Part
from cluster.bench.report import summarize
from cluster.bench.template import IMAGES_BODY, fill
from tests.unit.test_bench_report import Answering, Server

TRACE = "arrival_s,num_images,num_inference_steps,num_lora\n" + "".join(
    f"{at},1,20,{number}\n" for at, number in enumerate(["0", "1", "2", "0", "", "6"])
)


def requests(*numbers: int, model: str | None = None) -> list[PlannedRequest]:
    return [
        PlannedRequest(float(at), "a star", seed=at, num_loras=number, model=model)
        for at, number in enumerate(numbers)
    ]


def test_a_trace_may_say_how_many_adapters_there_are(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    arrivals = trace(path, speed_up=1)
    assert [one.num_lora for one in arrivals] == [0, 1, 2, 0, None, 6]
    assert [one.num_loras for one in plan_trace(arrivals, Mix(), seed=0)] == [0, 1, 2, 0, 0, 6]
    mix = Mix(num_loras={3: 1})
    assert [one.num_loras for one in plan_trace(arrivals, mix, seed=0)] == [0, 1, 2, 0, 3, 6]
    path.write_text(TRACE + "9,1,20,x\n")
    with pytest.raises(ValueError, match="line 8: 'x' is not a whole number of at least 0"):
        trace(path, speed_up=1)


def test_their_number_is_drawn_by_weight_and_changes_nothing_else(tmp_path: Path) -> None:
    due_s = [0.01 * index for index in range(4000)]
    mix = Mix(num_inference_steps={4: 1, 20: 3}, num_loras={0: 85, 1: 15})
    planned = plan(due_s, mix, seed=3)
    assert Counter(one.num_loras for one in planned)[1] == pytest.approx(600, rel=0.15)
    without = plan(due_s, Mix(num_inference_steps={4: 1, 20: 3}), seed=3)
    assert [one.num_inference_steps for one in planned] == [one.num_inference_steps for one in without]
    file = tmp_path / "mix.yaml"
    file.write_text("num_loras: {0: 85, 1: 15}\nadapters: {ink: 2}")
    assert read_mix(file) == Mix(num_loras={0: 85, 1: 15}, adapters={"ink": 2})


def test_names_are_different_ones_and_the_first_are_the_most_popular() -> None:
    weights = by_place(["a", "b", "c", "d"])
    assert weights == {"a": 1, "b": 1 / 2, "c": 1 / 3, "d": 1 / 4}
    planned = requests(*[1] * 3000)
    drawn = Counter(one.loras for one in with_adapters(planned, lambda _: weights, seed=1))
    assert drawn[("a",)] == pytest.approx(3000 / (25 / 12), rel=0.1)
    assert drawn[("d",)] == pytest.approx(750 / (25 / 12), rel=0.2)
    [none, two, most] = with_adapters(requests(0, 2, 9), lambda _: weights, seed=1)
    assert none.loras is None
    assert len(set(two.loras or ())) == 2
    assert set(most.loras or ()) == set("abcd"), "as many as there are"
    again = with_adapters(planned, lambda _: weights, seed=1)
    assert Counter(one.loras for one in again) == drawn
    assert again != with_adapters(planned, lambda _: weights, seed=2)


def test_requests_get_adapters_that_fit_their_model() -> None:
    offered = [Offered("small", ["sd"], 16), Offered("both", ["sd", "xl"], 32), Offered("other", [], 8)]
    weights_of = weights_by_model(offered, [Listed("sd", ["sd-1"]), Listed("xl"), Listed("plain")])
    assert weights_of("sd-1") == weights_of(None) == weights_of("sd") == by_place(["small", "both"])
    assert weights_of("xl") == {"both": 1}
    assert weights_of("plain") == weights_of("unknown") == {}
    assert weights_by_model(offered, [])("any") == by_place(["small", "both", "other"])


def test_who_has_adapters_is_told_in_a_sentence() -> None:
    planned = requests(0, 1, 2, 0)
    named = with_adapters(planned, lambda _: {"a": 1}, seed=0)
    assert sentence("sd", [named], 30) == (
        "sd: 2 of 4 requests name adapters, of 30 that are offered (the n-th has 1/n of the first one's)."
    )
    assert sentence("sd", [planned], 0) == (
        "sd offers no adapters for them, so 2 of 4 requests go without theirs."
    )
    assert "; 2 more go without, as none fits their model." in sentence("sd", [named, planned], 30)


def test_a_body_names_adapters_only_if_the_request_does() -> None:
    [without, named] = with_adapters(requests(0, 1), lambda _: {"styles/ink": 1}, seed=0)
    assert "loras" not in fill(IMAGES_BODY, without)
    assert json.loads(json.dumps(fill(IMAGES_BODY, named)))["loras"] == ["styles/ink"]


def outcomes(latencies: dict[tuple[str, ...] | None, Sequence[float]]) -> list[RequestOutcome]:
    return [
        RequestOutcome(
            PlannedRequest(0.0, "a star", 0, loras=loras), 0.0, Answer(Kind.COMPLETED, latency_s, 1)
        )
        for loras, some in latencies.items()
        for latency_s in some
    ]


def test_latencies_are_told_with_and_without_adapters_if_there_are_both() -> None:
    summary = summarize(outcomes({("a",): [4.0], ("a", "b"): [6.0], None: [1.0, 2.0, 3.0]}))
    assert summary.by_adapters == [
        Part("with", 2, 5.0, 5.0, pytest.approx(5.9)),
        Part("without", 3, 2.0, 2.0, pytest.approx(2.9)),
    ]
    assert summarize(outcomes({None: [1.0]})).by_adapters == []
    assert summarize(outcomes({("a",): [1.0]})).by_adapters == []


class Serving(Answering):
    """Also lists adapters, two on a page, with links that have another host."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("authorization")))  # type: ignore[attr-defined]
        path = urlsplit(self.path)
        listed = self.server.adapters  # type: ignore[attr-defined]
        start = int(parse_qs(path.query).get("cursor", ["0"])[0])
        more = start + 2 < len(listed)
        page = {
            "data": listed[start : start + 2],
            "next": f"http://elsewhere.example{path.path}?cursor={start + 2}" if more else None,
        }
        answer = json.dumps(page).encode()
        self.send_response(200 if path.path == "/v1/adapters" and listed else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


class AdapterServer(Server):
    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = Serving
        self.asked: list[tuple[str, str | None]] = []
        self.adapters: list[dict[str, object]] = [
            {"id": "a", "models": ["sd"], "rank": 16, "problem": None},
            {"id": "wide", "models": ["sd"], "rank": 640, "problem": "has the rank 640"},
            {"id": "b", "models": ["sd"], "rank": 32, "problem": None},
        ]


@pytest.fixture
def server() -> Iterator[AdapterServer]:
    with AdapterServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_server_is_asked_for_all_pages_of_its_adapters(server: AdapterServer) -> None:
    assert served_adapters(server.url, "mst_key") == [Offered("a", ("sd",), 16), Offered("b", ("sd",), 32)]
    assert server.asked == [(path, "Bearer mst_key") for path in ("/v1/adapters", "/v1/adapters?cursor=2")]
    server.adapters = []
    assert served_adapters(server.url) == []
    assert served_adapters("http://127.0.0.1:1") == []


def bench(server: AdapterServer, folder: Path, *options: str) -> list[dict[str, object]]:
    """The latencies with and without adapters."""
    assert cli.main(["bench", "--url", server.url, *options, "--output", str(folder)]) == 0
    [summary] = json.loads((folder / "midstep.json").read_text())["summaries"]
    assert isinstance(summary, dict)
    parts = summary["by_adapters"]
    assert isinstance(parts, list)
    return parts


def test_a_traces_requests_name_the_servers_adapters(
    server: AdapterServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    parts = bench(server, tmp_path, "--trace", str(path), "--speed-up", "20")
    assert [(part["name"], part["num_requests"]) for part in parts] == [("with", 3), ("without", 3)]
    sent = [body.get("loras") for _, body in server.bodies]
    assert Counter(len(one) if isinstance(one, list) else 0 for one in sent) == {0: 3, 1: 1, 2: 2}
    told = capsys.readouterr().out
    assert "midstep: 3 of 6 requests name adapters, of 2 that are offered" in told
    assert "adapters" in told
    server.bodies.clear()
    server.adapters = []
    assert bench(server, tmp_path, "--trace", str(path), "--speed-up", "20") == []
    assert all("loras" not in body for _, body in server.bodies)
    assert "midstep offers no adapters for them, so 3 of 6 requests go without theirs." in " ".join(
        capsys.readouterr().out.split()
    )


def test_adapters_that_are_named_are_sent_as_they_are(server: AdapterServer, tmp_path: Path) -> None:
    load = ["--arrivals", "constant", "--rate", "20", "--duration", "1", "--adapters", "ink:1,else:1"]
    bench(server, tmp_path, *load, "--num-loras", "0:1,1:1")
    assert {str(body.get("loras")) for _, body in server.bodies} == {"None", "['ink']", "['else']"}
    assert server.asked == [], "nothing needs to be asked"


def test_names_for_no_request_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["bench", "--url", "http://127.0.0.1:1", "--rate", "1", "--adapters", "ink"]
    with pytest.raises(SystemExit):
        cli.main([*options, "--output", str(tmp_path)])
    assert "--adapters: no request has any; --num-loras 0:85,1:15" in capsys.readouterr().err
