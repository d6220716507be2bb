"""Jobs over HTTP, with Replicate's client and from the command line: submitted, followed, canceled."""

import asyncio
import base64
import io
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import replicate
from PIL import Image
from replicate.exceptions import ReplicateError
from replicate.stream import ServerSentEvent
from standardwebhooks import Webhook

from serve.http.limits import MAX_UPLOAD_BYTES
from tests.integration.conftest import MIDSTEP, Metric, settled, wait_for
from tests.integration.predictions import FINISH_TIMEOUT_S, PROMPT, ROUTE, begun, create, finished
from tests.shapes import evaluate, scenes

EventType = ServerSentEvent.EventType


def test_a_job_makes_the_picture_that_the_images_route_makes(client: httpx.Client) -> None:
    given = {"seed": 3, "deterministic": True, "num_inference_steps": 12}
    created = create(client, num_outputs=2, **given)
    assert created["status"] in ("starting", "processing")
    prediction = finished(client, created["id"])
    assert (prediction["status"], prediction["progress"], prediction["error"]) == ("succeeded", 1.0, None)
    files = [client.get(url) for url in prediction["output"]]
    answer = client.post("/v1/images/generations", json={"prompt": PROMPT, "n": 2} | given).json()
    assert [file.content for file in files] == [base64.b64decode(item["b64_json"]) for item in answer["data"]]
    assert files[0].headers["content-type"] == "image/png"
    assert "immutable" in files[0].headers["cache-control"]


def test_waiting_for_it_answers_with_the_finished_job(client: httpx.Client) -> None:
    prediction = create(client, {"prefer": "wait=60"}, seed=1)
    assert prediction["status"] == "succeeded"
    image = Image.open(io.BytesIO(client.get(prediction["output"][0]).content))
    wanted = scenes.Scene("blue", (scenes.Thing("red", "star", "large"),), None)
    assert evaluate.judge(wanted, np.asarray(image)) == evaluate.Verdict(True, None, True)


@pytest.fixture
def replicates(base_url: str) -> Iterator[replicate.Client]:
    client = replicate.Client(api_token="any", base_url=base_url)
    yield client
    client._client.close()  # it has no method for this


def sizes(urls: list[str]) -> list[tuple[int, int]]:
    """Sizes of the pictures. Replicate's client makes files only of https:// URLs."""
    return [Image.open(io.BytesIO(httpx.get(url).content)).size for url in urls]


@pytest.mark.parametrize("model", ["midstep/shapes", "midstep/shapes:shapes"])
def test_replicates_own_client(replicates: replicate.Client, model: str) -> None:
    urls = replicates.run(model, input={"prompt": PROMPT, "seed": 4, "num_outputs": 2})
    assert sizes(urls) == [(128, 128)] * 2
    prediction = replicates.predictions.create(version="shapes", input={"prompt": PROMPT})
    prediction.wait()
    assert prediction.status == "succeeded"
    assert prediction.progress is not None
    assert prediction.progress.percentage == 1.0
    assert prediction.id in [other.id for other in replicates.predictions.list()]
    assert replicates.predictions.get(prediction.id).output == prediction.output


def test_replicates_own_client_waits_for_what_takes_longer_than_its_request(
    replicates: replicate.Client,
) -> None:
    """It takes any status except "starting" after the wait as the end of the job."""
    given = {"prompt": PROMPT, "num_outputs": 4, "num_inference_steps": 100}
    assert sizes(replicates.run("midstep/shapes", input=given, wait=1)) == [(128, 128)] * 4


def test_replicates_own_client_reloads_and_cancels(replicates: replicate.Client) -> None:
    given = {"prompt": PROMPT, "num_outputs": 8, "num_inference_steps": 100}
    prediction = replicates.predictions.create(version="shapes", input=given)
    prediction.reload()
    assert prediction.status in ("starting", "processing")
    prediction.cancel()
    assert prediction.status == "canceled"
    prediction.reload()
    assert prediction.status == "canceled"


def test_replicates_own_client_streams(replicates: replicate.Client) -> None:
    given = {"prompt": PROMPT, "num_outputs": 2}
    seen = list(replicates.stream("midstep/shapes", input=given))
    assert sizes([event.data for event in seen if event.event is EventType.OUTPUT]) == [(128, 128)] * 2
    assert seen[-1].event is EventType.DONE
    prediction = replicates.predictions.create(version="shapes", input=given)
    streamed = [event.data for event in prediction.stream() if event.event is EventType.OUTPUT]
    prediction.reload()
    assert (prediction.status, prediction.output) == ("succeeded", streamed)


def test_replicates_own_client_finds_the_model(replicates: replicate.Client) -> None:
    model = replicates.models.get("midstep/shapes")
    assert (model.owner, model.name) == ("midstep", "shapes")
    assert [version.id for version in model.versions.list()] == ["shapes"]
    assert model.latest_version is not None
    assert model.latest_version == model.versions.get("shapes")
    assert sizes(replicates.run(model.latest_version, input={"prompt": PROMPT})) == [(128, 128)]
    with pytest.raises(ReplicateError, match="not served here"):
        replicates.models.get("midstep/sdxl")


def test_replicates_own_client_keeps_files(
    base_url: str, replicates: replicate.Client, tmp_path: Path
) -> None:
    data = bytes(range(256)) * 8192  # four times the limit of a JSON body
    path = tmp_path / "star.png"
    path.write_bytes(data)
    file = replicates.files.create(path, metadata={"order": 7})
    assert (file.name, file.content_type, file.size) == ("star.png", "image/png", len(data))
    assert file.metadata == {"order": 7}
    assert replicates.files.get(file.id) == file
    assert file in replicates.files.list()
    assert httpx.get(file.urls["get"]).content == data
    assert replicates.files.delete(file.id)
    assert file not in replicates.files.list()
    with pytest.raises(ReplicateError, match="There is no file"):
        replicates.files.get(file.id)
    with pytest.raises(ReplicateError, match="an id may be missing"):
        replicates.files.get("")
    with path.open("rb") as image, pytest.raises(ReplicateError, match="no PNG, JPEG or WebP file"):
        replicates.run("midstep/shapes", input={"prompt": PROMPT, "image": image})


def test_a_file_that_is_too_large_is_refused_before_it_is_all_there(client: httpx.Client) -> None:
    files = {"content": ("a", b" " * (MAX_UPLOAD_BYTES + 1))}
    answer = client.post("/v1/files", files=files)
    assert (answer.status_code, answer.json()["error_type"]) == (413, "body_too_large")
    assert client.get("/readyz").status_code == 200


def test_replicates_own_client_asks_who_it_is_and_what_there_is(replicates: replicate.Client) -> None:
    model, other = replicates.models.list()
    assert (model.name, other.name) == ("shapes", "outlines")
    assert replicates.models.get(f"{model.owner}/{model.name}") == model
    assert replicates.accounts.current().username == "anonymous"
    assert [hardware.sku for hardware in replicates.hardware.list()] == ["cpu"]
    with pytest.raises(ReplicateError, match="api_keys"):
        replicates.webhooks.default.secret()


def test_the_same_idempotency_key_is_the_same_job(client: httpx.Client) -> None:
    headers = {"idempotency-key": '"my order 7"'}
    first = create(client, headers, seed=1)
    assert create(client, headers, seed=1)["id"] == first["id"]
    body = {"version": "shapes", "input": {"prompt": PROMPT, "seed": 2}}
    other = client.post(ROUTE, json=body, headers=headers)
    assert (other.status_code, other.json()["error_type"]) == (422, "idempotency_key_reused")


def test_cancel(client: httpx.Client) -> None:
    created = create(client, num_inference_steps=100, num_outputs=8)
    canceled = client.post(f"{ROUTE}/{created['id']}/cancel").json()
    assert canceled["status"] == "canceled"
    assert finished(client, created["id"])["status"] == "canceled"
    again = client.post(f"{ROUTE}/{created['id']}/cancel")
    assert (again.status_code, again.json()["status"]) == (200, "canceled")


def test_a_canceled_job_frees_its_rows(client: httpx.Client, metric: Metric) -> None:
    count = "ray_midstep_forward_requests_count"
    before = settled(metric, count)
    created = create(client, num_inference_steps=100, scheduler="Heun", width=256, height=256)
    wait_for(lambda: metric("ray_midstep_denoising_requests") == 1)
    client.post(f"{ROUTE}/{created['id']}/cancel")
    wait_for(lambda: metric("ray_midstep_denoising_requests") == 0)
    assert settled(metric, count) - before < 199, "it did not run to its end"


def test_a_job_is_canceled_when_its_time_is_over(client: httpx.Client) -> None:
    others = [create(client, num_inference_steps=100, num_outputs=10) for _ in range(6)]
    late = create(client, {"cancel-after": "5s"}, num_inference_steps=100, num_outputs=10, priority=-2)
    assert late["deadline"] is not None
    assert late["eta_s"] is None or late["eta_s"] > 0
    assert finished(client, late["id"])["status"] == "canceled"
    for other in others:
        client.post(f"{ROUTE}/{other['id']}/cancel")


def events(
    client: httpx.Client, prediction_id: str, last_event_id: str | None = None, route: str = "stream"
) -> list[dict[str, str]]:
    headers = {} if last_event_id is None else {"last-event-id": last_event_id}
    with client.stream("GET", f"{ROUTE}/{prediction_id}/{route}", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text = "".join(response.iter_text()).replace("\r\n", "\n")
    blocks = [block.splitlines() for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block if ": " in line) for block in blocks]


def test_the_stream_of_a_job_and_where_it_goes_on(client: httpx.Client) -> None:
    created = create(client, num_outputs=3, num_inference_steps=60)
    seen = events(client, created["id"])
    assert [event["event"] for event in seen if event["event"] == "output"] == ["output"] * 3
    assert seen[-1]["event"] == "done"
    assert all("id" in event for event in seen)
    urls = finished(client, created["id"])["output"]
    assert [event["data"] for event in seen if event["event"] == "output"] == urls
    second = [event["id"] for event in seen if event["event"] == "output"][1]
    rest = events(client, created["id"], second)
    assert [event["data"] for event in rest if event["event"] == "output"] == urls[2:]


def test_a_job_is_watched_with_previews_and_then_deleted(client: httpx.Client, data_folder: Path) -> None:
    created = create(client, num_outputs=4, num_inference_steps=100, num_previews=8)
    seen = events(client, created["id"], route="events")
    shown = [json.loads(event["data"]) for event in seen if event["event"] == "prediction"]
    assert seen[0]["event"] == seen[-1]["event"] == "prediction"
    assert shown[-1] == finished(client, created["id"])
    assert (shown[-1]["status"], shown[-1]["live_id"]) == ("succeeded", created["live_id"])
    previews = [json.loads(event["data"]) for event in seen if event["event"] == "preview"]
    assert previews
    for preview in previews:
        with Image.open(io.BytesIO(base64.b64decode(preview["b64_json"]))) as image:
            assert (image.size, image.get_format_mimetype()) == ((128, 128), preview["media_type"])
        assert preview["step"] == round(100 * (preview["preview_index"] + 1) / 9)
    of_first = [preview["preview_index"] for preview in previews if preview["image_index"] == 0]
    assert of_first == sorted(set(of_first))
    wait_for(lambda: not list((data_folder / "objects" / "previews").glob("*/*")))

    urls = shown[-1]["output"]
    assert [client.get(url).status_code for url in urls] == [200] * 4
    path = f"{ROUTE}/{created['id']}"
    assert client.delete(path).status_code == 204
    assert client.get(path).json()["error_type"] == "prediction_not_found"
    assert client.delete(path).status_code == 404
    assert created["id"] not in [job["id"] for job in client.get(ROUTE).json()["results"]]
    wait_for(lambda: [client.get(url).status_code for url in urls] == [404] * 4, timeout_s=60)


def test_a_running_job_is_deleted_with_all_that_it_has_made(client: httpx.Client, data_folder: Path) -> None:
    created = create(client, num_outputs=10, num_inference_steps=100, num_previews=8)
    begun(client, created["id"])
    assert client.delete(f"{ROUTE}/{created['id']}").status_code == 204
    objects = data_folder / "objects"
    wait_for(lambda: not list(objects.glob(f"*/{created['id']}/*")), timeout_s=60)


def test_pages_of_jobs(client: httpx.Client) -> None:
    ids = [create(client, num_inference_steps=2)["id"] for _ in range(3)]
    page = client.get(ROUTE).json()
    assert [job["id"] for job in page["results"]][:3] == ids[::-1]
    for prediction_id in ids:
        finished(client, prediction_id)


@pytest.mark.parametrize(
    ("body", "headers", "param"),
    [
        ({"version": "shapes"}, {}, "input"),
        ({"input": {"prompt": "a"}}, {}, "version"),
        ({"version": "shapes", "input": {}}, {}, "input.prompt"),
        ({"version": "shapes", "input": {"prompt": " "}}, {}, "input.prompt"),
        ({"version": "shapes", "input": {"prompt": "a", "width": 130}}, {}, "input.width"),
        ({"version": "shapes", "input": {"prompt": "a", "num_outputs": 11}}, {}, "input.num_outputs"),
        ({"version": "shapes", "input": {"prompt": "a", "scheduler": "Elephant"}}, {}, "input.scheduler"),
        ({"version": "shapes", "input": {"prompt": "a"}, "webhook": "ftp://a"}, {}, "webhook"),
        ({"version": "shapes", "input": {"prompt": "a"}, "web_hook": "http://a"}, {}, "web_hook"),
        ({"version": "shapes", "input": {"prompt": "a"}}, {"prefer": "wait=0"}, "Prefer"),
        ({"version": "shapes", "input": {"prompt": "a"}}, {"cancel-after": "soon"}, "Cancel-After"),
    ],
)
def test_what_would_be_refused_later_is_refused_now(
    client: httpx.Client, body: Any, headers: dict[str, str], param: str
) -> None:
    response = client.post(ROUTE, json=body, headers=headers)
    assert response.status_code == 422, response.text
    assert response.json()["error"]["param"] == param


def test_what_is_not_there_is_not_found(client: httpx.Client) -> None:
    assert client.get(f"{ROUTE}/nothing").json()["error_type"] == "prediction_not_found"
    assert client.post(f"{ROUTE}/nothing/cancel").status_code == 404
    body = {"version": "flux-dev", "input": {"prompt": "a"}}
    assert client.post(ROUTE, json=body).json()["error_type"] == "model_not_found"
    assert client.get("/v1/files/images/a/0-aaaaaaaaaaaaaaaaaaaaaa.png").status_code == 404


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A server that keeps the requests it gets, and refuses the first one."""
    received: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            received.append(({name.lower(): value for name, value in self.headers.items()}, data))
            self.send_response(500 if len(received) == 1 else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", received
    server.shutdown()
    thread.join()
    server.server_close()


def test_webhooks_are_signed_and_sent_again(
    client: httpx.Client, data_folder: Path, receiver: tuple[str, list[tuple[dict[str, str], bytes]]]
) -> None:
    url, received = receiver
    body = {
        "version": "shapes",
        "input": {"prompt": PROMPT, "seed": 5},
        "webhook": url,
        "webhook_events_filter": ["start", "completed"],
    }
    created = client.post(ROUTE, json=body).json()
    deadline = time.monotonic() + FINISH_TIMEOUT_S
    while len(received) < 3:  # the first one is refused and sent again after some seconds
        assert time.monotonic() < deadline, received
        time.sleep(0.1)
    secret = (data_folder / "webhook_secret").read_text()
    payloads = [Webhook(secret).verify(data, headers) for headers, data in received]
    assert {payload["id"] for payload in payloads} == {created["id"]}
    assert sorted(payload["status"] for payload in payloads) == ["processing", "processing", "succeeded"]
    ids = [headers["webhook-id"] for headers, _ in received]
    assert len(set(ids)) == 2, "the same message has the same id over its attempts"
    [completed] = [payload for payload in payloads if payload["status"] == "succeeded"]
    assert completed["output"] == finished(client, created["id"])["output"]


def midstep(base_url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [MIDSTEP, *arguments, "--url", base_url]
    return subprocess.run(command, capture_output=True, text=True, timeout=FINISH_TIMEOUT_S, check=False)


def test_the_command_line(base_url: str, client: httpx.Client, tmp_path: Path) -> None:
    picture = tmp_path / "out.png"
    made = midstep(base_url, "generate", PROMPT, "--seed", "6", "-o", str(picture))
    assert made.returncode == 0, made.stderr
    with Image.open(picture) as image:
        assert image.size == (128, 128)
    submitted = midstep(base_url, "jobs", "submit", PROMPT, "--num-outputs", "2")
    job_id = submitted.stdout.strip()
    waited = midstep(base_url, "jobs", "wait", job_id, "-o", str(tmp_path / "several.png"), "--json")
    assert json.loads(waited.stdout)["status"] == "succeeded"
    assert (tmp_path / "several-0.png").exists()
    assert (tmp_path / "several-1.png").exists()
    for options in ([], ["--json"]):
        assert job_id in midstep(base_url, "jobs", "list", *options).stdout
    refused = midstep(base_url, "generate", PROMPT, "--width", "130")
    assert refused.returncode == 1
    assert "input.width" in refused.stderr


def test_jobs_and_requests_share_forwards(base_url: str, client: httpx.Client) -> None:
    """Jobs and requests at once: all are served."""

    async def run() -> list[int]:
        async with httpx.AsyncClient(base_url=base_url, timeout=120) as http:
            posts = [
                http.post("/v1/images/generations", json={"prompt": PROMPT, "seed": seed})
                for seed in range(4)
            ]
            jobs = [
                http.post(ROUTE, json={"version": "shapes", "input": {"prompt": PROMPT}}) for _ in range(4)
            ]
            answers = await asyncio.gather(*posts, *jobs)
            return [answer.status_code for answer in answers] + [
                int(finished(client, answer.json()["id"])["status"] == "succeeded") for answer in answers[4:]
            ]

    assert asyncio.run(run()) == [200] * 4 + [201] * 4 + [1] * 4


def test_requests_reckon_with_jobs_that_keep_the_denoisers_busy(client: httpx.Client) -> None:
    """A deadline that could be met alone is too early beside a job, but not after the job's cancellation."""
    asked = {"prompt": PROMPT, "num_inference_steps": 20}
    refused = client.post("/v1/images/generations", json=asked | {"deadline_s": 0.01})
    [alone_s] = map(float, re.findall(r"takes about ([\d.]+) s", refused.json()["error"]["message"]))
    asked |= {"deadline_s": 2.5 * alone_s}
    job = create(client, num_outputs=10, num_inference_steps=100)

    def answered() -> str | None:
        """The answer's error code, if any."""
        answer: dict[str, Any] = client.post("/v1/images/generations", json=asked).json()
        return answer.get("error", {}).get("code")

    try:
        wait_for(lambda: answered() == "deadline_too_early_now", FINISH_TIMEOUT_S)
    finally:
        client.post(f"{ROUTE}/{job['id']}/cancel")
    wait_for(lambda: answered() is None, FINISH_TIMEOUT_S)
