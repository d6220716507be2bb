"""`midstep plan` from its command line to its tables."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from cluster.cli import main
from cluster.plan import validation
from serve.config.model import CostModelFile
from tests.unit.test_bench_load import PICTURE, serving

KEY = "mst_key"
LOAD = ["--rates", "2", "--duration", "20", "--steps", "20"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    model = {
        "path": "cluster/devices/sd15",
        "device": "simulated",
        "dtype": "bfloat16",
        "cost_model": "cluster/devices/h200-sd15.json",
    }
    args = {"model": model, "denoiser": {"max_replicas": 2}}
    application = {"name": "midstep", "import_path": "serve.app:build_app", "args": args}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [application]}))
    return path


def call(*options: str) -> None:
    assert main(["plan", *options]) == 0


def test_it_recommends_in_a_sentence_and_says_what_it_goes_by(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "plan.json"
    call(str(config), *LOAD, "--slo-s", "3", "--json", str(output))
    told = " ".join(capsys.readouterr().out.split())
    assert "Simulated with the costs of modelled H200 (60% of 790 TFLOP/s), not measured." in told
    assert "1 GPU with 1 denoiser and a row cap of 32 would keep 95% of requests within 3 s" in told
    assert "Autoscaled, denoisers: 1 at 0 s" in told
    written = json.loads(output.read_text())
    assert written["costs"].endswith("not measured")
    [load] = written["loads"]
    assert load["best"]["gpus"] == 1
    assert load["best"]["summary"]["num_images"] == load["best"]["summary"]["num_requests"]
    assert [option["is_autoscaled"] for option in load["options"]].count(True) == 1


def test_it_says_how_far_it_looked_where_nothing_is_enough(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(str(config), *LOAD, "--slo-s", "0.1", "--max-gpus", "3")
    told = " ".join(capsys.readouterr().out.split())
    assert "Nothing up to 3 GPUs would keep 95% of requests within 0.1 s (1 to 3 were simulated)." in told


def test_a_file_that_cannot_be_written_is_told_before_anything_is_simulated(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(str(config), *LOAD, "--json", str(config / "plan.json"))
    assert "argument --json" in capsys.readouterr().err


def test_a_trace_is_planned_for_as_it_is_replayed(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,num_images,num_inference_steps\n0,1,20\n30,4,30\n60,1,20\n")
    call(str(config), "--trace", str(trace), "--speed-up", "3")
    assert "3 requests for 6 images in 20 s" in capsys.readouterr().out
    trace.write_text(
        "arrival_s,task,num_images,num_inference_steps\n0,txt2img,1,20\n30,img2img,4,30\n60,inpaint,1,20\n"
    )
    call(str(config), "--trace", str(trace), "--speed-up", "3")
    told = capsys.readouterr().out
    assert "3 requests (1 txt2img, 1 img2img, 1 inpaint) for 6 images in 20 s" in told


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "argument --rate: is required"),
        ([*LOAD, "--percentile", "101"], "argument --percentile: is more than 100"),
        ([*LOAD, "--slo-s", "0"], "argument --slo-s: '0' is not above 0"),
        ([*LOAD, "--sharing", "all"], "argument --sharing: 'all' is not one of"),
        ([*LOAD, "--validate", "nowhere"], "argument --validate: 'nowhere' is not a URL"),
    ],
)
def test_an_option_at_fault_is_named(
    options: list[str],
    problem: str,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        call(str(config), *options)
    assert problem in capsys.readouterr().err


def test_without_costs_there_is_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"model\.cost_model: planning needs a file of `midstep profile`"):
        call("serve_config.yaml", *LOAD)
    with pytest.raises(SystemExit, match=r"model\.cost_model: 'nowhere\.json' is no file"):
        call("serve_config.yaml", "--cost-model", "nowhere.json", *LOAD)


def test_a_server_that_is_not_there_is_told(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"--validate http://127\.0\.0\.1:9: transport error"):
        call(str(config), *LOAD, "--validate", "http://127.0.0.1:9")


@contextmanager
def server_of(seconds_each: float, seconds_a_step: float = 0.0) -> Iterator[tuple[str, list[int]]]:
    """A server that needs a key and a fixed time per request, whoever else is there: its URL and the
    requested step counts."""
    asked: list[int] = []

    async def handler(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.Response(status=401)
        asked.append((await request.json())["num_inference_steps"])
        await asyncio.sleep(seconds_each + seconds_a_step * asked[-1])
        return web.json_response(PICTURE)

    async def run() -> None:
        async with serving(handler) as url:
            urls.append(url)
            started.set()
            await asyncio.to_thread(ended.wait)

    urls: list[str] = []
    started, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    started.wait()
    try:
        yield urls[0], asked
    finally:
        ended.set()
        thread.join()


def test_a_server_is_measured_and_compared(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server takes 0.5 s for everything: the measured time, far from the predicted one."""
    output = tmp_path / "plan.json"
    monkeypatch.setenv("MIDSTEP_API_KEY", KEY)
    with server_of(0.5) as (url, asked):
        load = ["--rates", "4", "--duration", "3", "--steps", "20", "--warmup", "1"]
        call(str(config), *load, "--validate", url, "--json", str(output))
    written = json.loads(output.read_text())
    [validated] = written["validated"]
    predicted, measured = validated["predicted"], validated["measured"]
    assert measured["latency_p50_s"] >= 0.5
    assert predicted["num_requests"] == measured["num_requests"] == measured["counts"]["completed"]
    # Alone, four steps take as long as forty there, so steps take no time. The model explains 60 ms of it.
    assert written["overheads"]["step_s"] == 0.0
    assert written["overheads"]["request_s"] >= 0.4
    assert (asked.count(4), asked.count(40)) == (7, 7), "single ones of few and of many steps"
    told = capsys.readouterr().out
    assert "Measured: --overhead-s" in told
    assert "predicted" in told
    off = 100 * (predicted["latency_p50_s"] / measured["latency_p50_s"] - 1)
    assert f"{off:+.1f}%" in told


def test_it_is_measured_how_long_steps_take_where_no_replicas_come(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured before and after the load, with evenly spaced requests, none of which waits here."""
    monkeypatch.setenv("MIDSTEP_API_KEY", KEY)
    monkeypatch.setattr(validation, "NUM_EVEN", 4)
    monkeypatch.setattr(validation, "UNLOADED_REQUESTS", 2)
    fixed = yaml.safe_load(config.read_text())
    del fixed["applications"][0]["args"]["denoiser"]
    config.write_text(yaml.safe_dump(fixed))
    output = tmp_path / "plan.json"
    costs = CostModelFile.model_validate_json(Path("cluster/devices/h200-sd15.json").read_text()).cost_model
    forward_s = costs.forward.seconds((64, 64), 2)
    with server_of(0.1, 2 * forward_s) as (url, asked):
        load = ["--rates", "2", "--duration", "2", "--steps", "20"]
        call(str(config), *load, "--validate", url, "--json", str(output))
    written = json.loads(output.read_text())
    [validated] = written["validated"]
    assert asked.count(20) == validated["measured"]["num_requests"] + 2 * 4
    assert validated["overheads"]["step_s"] == pytest.approx(forward_s, rel=0.3)
    assert validated["overheads"]["slowdown"] == 1.0
    assert validated["drift"] is not None


CHECKPOINTS = (
    "arrival_s,num_images,num_inference_steps,checkpoint\n0,1,20,a\n10,1,20,b\n20,1,20,a\n30,1,20,c\n"
)


def written_models(config: Path, folder: Path, *options: str) -> list[str]:
    """The models of a plan's first option."""
    trace, output = folder / "trace.csv", folder / "plan.json"
    trace.write_text(CHECKPOINTS)
    call(str(config), "--trace", str(trace), "--json", str(output), *options)
    [load] = json.loads(output.read_text())["loads"]
    return [of_model["name"] for of_model in load["options"][0]["summary"]["by_model"]]


def test_a_traces_checkpoints_are_models_of_their_own_without_a_catalog(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert written_models(config, tmp_path, "--load-s", "2") == ["a", "b", "c"]
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"4 requests for 4 images in (29|30|31) s, 0.10 requests/s, 3 models", told)
    assert "75.0% of the requests wait for a load." in told
    assert "Loads of models take no time" not in told
    assert written_models(config, tmp_path, "--load-s", "0") == ["a", "b", "c"]
    assert "Loads of models take no time in this cost model; --load-s gives" in capsys.readouterr().out


def test_models_are_as_many_as_is_said(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert written_models(config, tmp_path, "--num-models", "2") == ["shapes", "model-2"]
    assert "shapes: the requests of 3 checkpoints go to 2 models (by popularity)" in capsys.readouterr().out
    output = tmp_path / "plan.json"
    call(str(config), *LOAD, "--num-models", "3", "--json", str(output))
    [load] = json.loads(output.read_text())["loads"]
    of_models = load["options"][0]["summary"]["by_model"]
    assert [one["name"] for one in of_models] == ["shapes", "model-2", "model-3"]
    first, second, _ = (one["num_requests"] for one in of_models)
    assert first > second


def test_models_are_those_of_the_catalog(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models.d"
    folder.mkdir()
    (folder / "anime.yaml").write_text(yaml.safe_dump({"source": "cluster/devices/sd15", "aliases": ["b"]}))
    (folder / "broken.yaml").write_text("source: [")
    serve_config = yaml.safe_load(config.read_text())
    serve_config["applications"][0]["args"]["catalog"] = {"folder": str(folder)}
    config.write_text(yaml.safe_dump(serve_config))
    assert written_models(config, tmp_path) == ["shapes", "b"]
    folder.joinpath("anime.yaml").unlink()
    folder.joinpath("broken.yaml").unlink()
    folder.rmdir()
    with pytest.raises(SystemExit, match=r"catalog\.folder: .*models\.d cannot be read"):
        written_models(config, tmp_path)
