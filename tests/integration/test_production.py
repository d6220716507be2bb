"""An application as in production, with API keys, jobs on a PostgreSQL server, and traces.

Tests real clients with and without keys, a limit that is reached, a trace through every stage, and an
unreachable database server.
"""

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import openai
import pytest
import replicate
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from serve.config.api_keys import key_sha256, new_key
from tests.integration.applications import whole_application
from tests.integration.conftest import MIDSTEP, START_TIMEOUT_S, wait_for
from tests.integration.predictions import (
    FINISH_TIMEOUT_S,
    PROMPT,
    ROUTE,
    all_succeed,
    begun,
    body,
    create,
    refused,
    still_makes_pictures,
)
from tests.postgresql import Way, empty

ALICE, BOB, POOR, CAROL = new_key(), new_key(), new_key(), new_key()
API_KEYS = [
    {"name": "alice", "key_sha256": key_sha256(ALICE)},
    {"name": "bob", "key_sha256": key_sha256(BOB)},
    {"name": "carol", "key_sha256": key_sha256(CAROL)},
    {"name": "poor", "key_sha256": key_sha256(POOR), "device_seconds_per_minute": 0.001},
]
IMAGES = "/v1/images/generations"
IMAGE = {"prompt": PROMPT, "num_inference_steps": 4}


@contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """An OTLP collector over HTTP: its URL and the received spans."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Production:
    """client: without a key; way: to the database's server; spans: received by the collector"""

    client: httpx.Client
    way: Way
    spans: list[Span]


@pytest.fixture(scope="module")
def production(postgresql: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """An application that measures its costs at its start, like a new installation."""
    folder = tmp_path_factory.mktemp("production")
    asyncio.run(empty(postgresql))
    way = Way(postgresql, folder)
    jobs = {"data_folder": str(folder / "data"), "database_url": way.url}
    with collector() as (collector_url, spans):
        environment = {
            "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "serve.tracing:otlp",
            "RAY_SERVE_TRACING_SAMPLING_RATIO": "0",  # only for requests that are already traced
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector_url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        with whole_application(
            jobs, folder / "log", cost_model=None, api_keys=API_KEYS, environment=environment
        ) as running:
            yield Production(running.client, way, spans)


def with_key(production: Production, key: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=production.client.base_url, headers=headers, timeout=START_TIMEOUT_S)


def test_the_clients_with_keys_and_without(production: Production) -> None:
    url = str(production.client.base_url)
    for_openai(url)
    job_id = for_replicate(url)
    for_the_command_line(url, job_id)
    for_one_with_a_limit(production.client)


def for_openai(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=ALICE) as client:
        answer = client.images.generate(prompt=PROMPT, extra_body={"num_inference_steps": 4})
        assert answer.data
        events = client.images.generate(
            prompt=PROMPT, stream=True, partial_images=1, extra_body={"num_inference_steps": 4}
        )
        assert [event.type for event in events][-1] == "image_generation.completed"
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as stranger,
        pytest.raises(openai.AuthenticationError) as refusal,
    ):
        stranger.images.generate(prompt=PROMPT)
    assert refusal.value.code == "invalid_api_key"


def for_replicate(url: str) -> str:
    """Makes a job with Replicate's client. Returns its id."""
    client = replicate.Client(api_token=ALICE, base_url=url)
    [picture] = client.run("midstep/shapes", input={"prompt": PROMPT, "num_inference_steps": 4})
    assert httpx.get(picture).status_code == 200, "its URL needs no key"
    [prediction] = client.predictions.list()
    others = replicate.Client(api_token=BOB, base_url=url)
    assert list(others.predictions.list()) == []
    with pytest.raises(replicate.exceptions.ReplicateError) as refusal:
        others.predictions.get(prediction.id)
    assert refusal.value.status == 404
    for used in (client, others):
        used._client.close()  # it has no method for this
    return prediction.id


def for_the_command_line(url: str, job_id: str) -> None:
    def listed(key: str) -> "subprocess.CompletedProcess[str]":
        command = [MIDSTEP, "jobs", "list", "--json", "--url", url]
        environment = os.environ | {"MIDSTEP_API_KEY": key}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=FINISH_TIMEOUT_S, check=False
        )

    assert job_id in listed(ALICE).stdout
    assert listed(BOB).stdout.strip() == "[]"
    refused = listed("wrong")
    assert refused.returncode == 1
    assert "API key" in refused.stderr


def for_one_with_a_limit(client: httpx.Client) -> None:
    headers = {"authorization": f"Bearer {POOR}"}
    first = client.post(IMAGES, json=IMAGE, headers=headers)
    assert first.status_code == 200, first.text
    for path, given in ((IMAGES, IMAGE), (ROUTE, body(num_inference_steps=4))):
        refused = client.post(path, json=given, headers=headers)
        assert (refused.status_code, refused.json()["error_type"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) > 60
        served = client.post(path, json=given, headers={"authorization": f"Bearer {BOB}"})
        assert served.is_success


def test_a_trace_goes_on_through_every_stage(production: Production) -> None:
    trace_id, client_span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    spans = production.spans
    request = {"prompt": PROMPT, "n": 2, "num_inference_steps": 3}
    with with_key(production, CAROL) as client:
        assert client.post(IMAGES, json=request).status_code == 200
        headers = {"traceparent": f"00-{trace_id}-{client_span}-01", "x-request-id": "traced"}
        assert client.post(IMAGES, json=request, headers=headers).status_code == 200
    ours = ["decode", "decode", "denoise", "denoise", "encode", "generate"]
    known = set(ours)
    wait_for(lambda: sorted(span.name for span in spans if span.name in known) == ours)
    assert {span.trace_id.hex() for span in spans} == {trace_id}
    [generate] = [span for span in spans if span.name == "generate"]
    for span in spans:
        if span.name in known - {"generate"}:
            assert span.parent_span_id == generate.span_id
            attributes = {entry.key: entry.value for entry in span.attributes}
            assert attributes["midstep.request_id"].string_value == "traced"

    def beginning() -> str:
        """The span in which the trace began, as far as it is known: outer spans end and come last."""
        by_id = {span.span_id: span for span in spans}
        root = generate
        while root.parent_span_id in by_id:
            root = by_id[root.parent_span_id]
        return str(root.parent_span_id.hex())

    wait_for(lambda: beginning() == client_span)


def test_the_databases_server_is_away(production: Production) -> None:
    with with_key(production, CAROL) as client:
        before = create(client, num_inference_steps=100, num_outputs=2)["id"]
        begun(client, before)
        asyncio.run(production.way.close())
        refused(client, 503, "Job store unavailable")
        assert client.get(f"{ROUTE}/{before}").status_code == 503
        still_makes_pictures(client)
        production.way.open()
        all_succeed(client, [before, create(client, num_inference_steps=4)["id"]])
