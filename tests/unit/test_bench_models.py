"""Loads for many models: a trace's checkpoints, their models on a server, and latencies by model."""

import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cluster import cli
from cluster.bench.answers import Answer, Kind
from cluster.bench.arrivals import trace
from cluster.bench.checkpoints import Listed, mapped, served_models
from cluster.bench.load import RequestOutcome
from cluster.bench.mix import Mix, PlannedRequest, plan, plan_trace, read_mix
from cluster.bench.parts import NUM_SHOWN, Part
from cluster.bench.report import summarize
from cluster.bench.template import IMAGES_BODY, fill
from tests.unit.test_bench_report import Answering, Server

TRACE = "arrival_s,num_images,num_inference_steps,checkpoint\n" + "".join(
    f"{at},1,20,{name}\n" for at, name in enumerate(["a", "b", "b", "c", "b", "a", "d", ""])
)


def requests(*models: str | None) -> list[PlannedRequest]:
    return [PlannedRequest(float(at), "a star", seed=at, model=model) for at, model in enumerate(models)]


def test_a_trace_may_say_which_checkpoints_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    arrivals = trace(path, speed_up=1)
    checkpoints = ["a", "b", "b", "c", "b", "a", "d"]
    assert [one.checkpoint for one in arrivals] == [*checkpoints, None]
    assert [one.model for one in plan_trace(arrivals, Mix(), seed=0)] == [*checkpoints, None]
    mix = Mix(models={"x": 1})
    assert [one.model for one in plan_trace(arrivals, mix, seed=0)] == [*checkpoints, "x"]
    path.write_text("arrival_s,num_images,num_inference_steps\n0,1,20\n")
    assert [one.checkpoint for one in trace(path, speed_up=1)] == [None]


def test_models_are_drawn_by_weight_and_change_nothing_else(tmp_path: Path) -> None:
    due_s = [0.01 * index for index in range(4000)]
    mix = Mix(num_inference_steps={4: 1, 20: 3}, models={"a": 3, "b": 1})
    planned = plan(due_s, mix, seed=3)
    assert Counter(one.model for one in planned)["b"] == pytest.approx(1000, rel=0.15)
    without = plan(due_s, Mix(num_inference_steps={4: 1, 20: 3}), seed=3)
    assert [one.num_inference_steps for one in planned] == [one.num_inference_steps for one in without]
    file = tmp_path / "mix.yaml"
    file.write_text("models: {a: 3, b: 1}")
    assert read_mix(file) == Mix(models={"a": 3, "b": 1})


def test_a_body_names_a_model_only_if_the_request_does() -> None:
    named, unnamed = requests("a", None)
    assert fill(IMAGES_BODY, named)["model"] == "a"
    assert "model" not in fill(IMAGES_BODY, unnamed)


def models(planned: Sequence[PlannedRequest], *served: Listed) -> dict[str, str | None]:
    found = mapped([planned], served)
    assert found is not None
    return dict(found.models)


PLANNED = requests("a", "b", "b", "c", "b", "a", "c", "a", "b", "d")  # four of b, three of a, two of c


def test_checkpoints_are_shared_out_by_rank_over_and_over() -> None:
    assert models(PLANNED, *map(Listed, "xyz")) == {"b": "x", "a": "y", "c": "z", "d": "x"}
    assert models(PLANNED, Listed("x")) == dict.fromkeys("bacd", "x")
    assert models(PLANNED) == dict.fromkeys("bacd")


def test_names_that_are_served_stay_and_their_models_are_left_to_them() -> None:
    served = [Listed("x", aliases=["b"]), Listed("c"), Listed("y"), Listed("z")]
    assert models(PLANNED, *served) == {"b": "b", "a": "y", "c": "c", "d": "z"}
    assert models(requests("c", "d"), Listed("c")) == {"c": "c", "d": "c"}


def test_models_that_only_repaint_get_nobody_elses_requests() -> None:
    assert models(requests("a", "b"), Listed("x", needs_mask=True), Listed("y")) == {"a": "y", "b": "y"}


def test_the_mapping_is_told_in_a_sentence() -> None:
    def sentence(*served: Listed) -> str:
        found = mapped([PLANNED], served)
        assert found is not None
        return found.sentence("sd")

    assert sentence(*map(Listed, "xyz")) == (
        "sd: the requests of 4 checkpoints go to 3 models (by popularity); the top model has 50% of them."
    )
    assert "of 4 checkpoints go to 4 models (of the same names); the top model has 40%" in sentence(
        *map(Listed, "abcd")
    )
    assert "go to 2 models (1 by name)" in sentence(Listed("a"), Listed("x"))
    assert sentence() == "sd lists no models, so requests name none of the trace's 4."
    assert mapped([requests(None, None)], [Listed("x")]) is None


def test_a_request_gets_its_models_name() -> None:
    found = mapped([requests("a", "a", "b")], [Listed("x"), Listed("y")])
    assert found is not None
    assert [one.model for one in found.apply(requests("b", None, "a"))] == ["y", None, "x"]


def outcomes(latencies: dict[str | None, Sequence[float]]) -> list[RequestOutcome]:
    return [
        RequestOutcome(one, 0.0, Answer(Kind.COMPLETED, latency, 1))
        for model, some in latencies.items()
        for latency, [one] in ((latency, [PlannedRequest(0.0, "a star", 0, model=model)]) for latency in some)
    ]


def test_latencies_are_told_by_model_for_the_most_popular_ones() -> None:
    few = {f"m{index}": [1.0, 3.0] for index in range(NUM_SHOWN - 1)}
    summary = summarize(outcomes({"rare": [8.0], "rarer": [4.0], **few, "top": [1.0, 2.0, 3.0], None: [9.0]}))
    assert summary.num_models == NUM_SHOWN + 2
    assert summary.by_model[0] == Part("top", 3, 2.0, 2.0, pytest.approx(2.9))
    assert summary.by_model[-1] == Part("all others", 2, 6.0, 6.0, pytest.approx(7.8))
    assert len(summary.by_model) == NUM_SHOWN + 1
    assert summarize(outcomes({None: [1.0]})).by_model == []


class Serving(Answering):
    """Also lists models, as long as the server has any."""

    def do_GET(self) -> None:
        self.server.keys.append(self.headers.get("authorization"))  # type: ignore[attr-defined]
        answer = json.dumps({"data": self.server.models}).encode()  # type: ignore[attr-defined]
        self.send_response(200 if self.path == "/v1/models" and self.server.models else 404)  # type: ignore[attr-defined]
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


class ModelServer(Server):
    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = Serving
        self.keys: list[str | None] = []
        self.models: list[dict[str, object]] = [{"id": "x", "aliases": ["b"]}, {"id": "y"}]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_server_is_asked_for_its_models(server: ModelServer) -> None:
    assert served_models(server.url, "mst_key") == [Listed("x", ("b",)), Listed("y")]
    assert server.keys == ["Bearer mst_key"]
    server.models = []
    assert served_models(server.url) == []
    assert served_models("http://127.0.0.1:1") == []


def bench(server: ModelServer, folder: Path, *options: str) -> dict[str, object]:
    """The summary of a run."""
    assert cli.main(["bench", "--url", server.url, *options, "--output", str(folder)]) == 0
    [summary] = json.loads((folder / "midstep.json").read_text())["summaries"]
    assert isinstance(summary, dict)
    return summary


def test_a_traces_requests_name_the_servers_models(
    server: ModelServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    summary = bench(server, tmp_path, "--trace", str(path), "--speed-up", "20")
    sent = Counter(body.get("model") for _, body in server.bodies)
    assert sent == {"b": 3, "y": 4, None: 1}
    assert summary["num_models"] == 2
    told = capsys.readouterr().out
    assert "midstep: the requests of 4 checkpoints go to 2 models (1 by name)" in told
    assert "models" in told
    assert [line.split()[1:3] for line in told.splitlines() if line.split()[1:2] in (["y"], ["b"])] == [
        ["y", "4"],
        ["b", "3"],
    ]

    server.bodies.clear()
    server.models = []
    bench(server, tmp_path, "--trace", str(path), "--speed-up", "20")
    assert {body.get("model") for _, body in server.bodies} == {None}
    assert "midstep lists no models" in capsys.readouterr().out


def test_models_that_are_named_are_sent_as_they_are(server: ModelServer, tmp_path: Path) -> None:
    load = ["--arrivals", "constant", "--rate", "20", "--duration", "1", "--models", "y:1,else:1"]
    bench(server, tmp_path, *load)
    assert {body["model"] for _, body in server.bodies} == {"y", "else"}
    assert server.keys == [], "nothing needs to be asked"
