"""What a running application shows: the metrics that the dashboard and the rules read, a request's lines in
the logs of every stage, and its trace at a collector."""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from promql_parser import MatchOp, VectorSelector

from cluster.ports import free_port
from tests.integration.applications import whole_application
from tests.integration.conftest import replica, wait_for
from tests.integration.predictions import PROMPT, begun, body, create, finished
from tests.integration.predictions import ROUTE as PREDICTIONS
from tests.promql import expressions, selectors

ROUTE = "/v1/images/generations"
EXPORT_TIMEOUT_S = 180.0  # another denoiser starts meanwhile


def exported(url: str) -> list[Sample]:
    families = text_string_to_metric_families(httpx.get(url, timeout=10).text)
    return [sample for family in families for sample in family.samples]


def reads(selector: VectorSelector, sample: Sample) -> bool:
    """Whether the sample is what the selector is after. Of values that it picks by a pattern not all are
    there at any time; the label is."""
    return sample.name == selector.name and all(
        matcher.name in sample.labels
        and (matcher.op != MatchOp.Equal or sample.labels[matcher.name] == matcher.value)
        for matcher in selector.matchers.matchers
    )


def test_dashboard_and_rules_read_what_a_running_application_exports(
    client: httpx.Client, metrics_url: str
) -> None:
    for _ in range(2):  # the second finds its texts in the cache
        assert client.post(ROUTE, json={"prompt": PROMPT, "num_inference_steps": 2}).status_code == 200
    assert client.post(ROUTE, json={"prompt": ""}).status_code == 400
    job = body(num_inference_steps=2) | {"webhook": f"http://127.0.0.1:{free_port()}/"}
    finished(client, client.post(PREDICTIONS, json=job).json()["id"])
    long = create(client, num_inference_steps=100, scheduler="Heun", width=256, height=256)
    begun(client, long["id"])
    ray.kill(replica("Denoiser"), no_restart=True)

    missing = {
        f"{name}: {selector}": selector
        for name, expression in expressions()
        for selector in selectors(expression)
        if ":" not in str(selector.name)  # what is recorded is made of the others
    }
    deadline = time.monotonic() + EXPORT_TIMEOUT_S
    while missing:
        assert time.monotonic() < deadline, list(missing)
        samples = exported(metrics_url)
        # One by one: here, where metrics are exported every second, gauges come and go between two updates.
        for name, selector in list(missing.items()):
            if any(reads(selector, sample) for sample in samples):
                del missing[name]
        time.sleep(0.5)
    client.post(f"{PREDICTIONS}/{long['id']}/cancel")
    ours = {sample.name for sample in exported(metrics_url) if sample.name.startswith("ray_midstep_")}
    documented = set(re.findall(r"`(ray_\w+)`", Path("docs/observability.md").read_text()))
    assert {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in ours} <= documented


def lines_of(request_id: str, head: dict[str, Any]) -> list[dict[str, Any]]:
    """In the logs of all replicas."""
    logs = Path(head["RayletSocketName"]).parents[1] / "logs" / "serve"
    lines = [line for log in logs.glob("replica_*.log") for line in log.read_text().splitlines()]
    records = [json.loads(line) for line in lines if line.startswith("{")]
    return [record for record in records if record.get("request_id") == request_id]


STAGES = {
    ("midstep_PromptEncoder", "encode"),
    ("midstep_Denoiser", "denoise"),
    ("midstep_VaeDecoder", "decode"),
}


def stages_of(request_id: str, head: dict[str, Any]) -> set[tuple[str, str]]:
    """The deployments and what they say that they have done."""
    lines = [line for line in lines_of(request_id, head) if "stage" in line]
    return {(line["deployment"], line["stage"]) for line in lines}


def test_a_requests_id_is_in_the_logs_of_every_stage(client: httpx.Client, head: dict[str, Any]) -> None:
    headers = {"x-request-id": "an-observed-request"}
    assert client.post(ROUTE, json={"prompt": PROMPT}, headers=headers).status_code == 200
    wait_for(lambda: stages_of("an-observed-request", head) == STAGES)
    job = create(client, num_inference_steps=2)["id"]
    finished(client, job)
    wait_for(lambda: stages_of(job, head) == STAGES)


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Span]]]:
    """An OTLP collector over HTTP: its URL and the spans that it was sent."""
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
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_trace_goes_on_through_every_stage(
    collector: tuple[str, list[Span]], cost_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, spans = collector
    settings = {
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "serve.tracing:otlp",
        "RAY_SERVE_TRACING_SAMPLING_RATIO": "0",  # only of requests that are traced already
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    trace_id, client_span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    jobs = {"data_folder": str(tmp_path / "data")}
    with whole_application(jobs, tmp_path / "log", cost_model) as running:
        request = {"prompt": PROMPT, "n": 2, "num_inference_steps": 3}
        assert running.client.post(ROUTE, json=request).status_code == 200
        headers = {"traceparent": f"00-{trace_id}-{client_span}-01", "x-request-id": "traced"}
        assert running.client.post(ROUTE, json=request, headers=headers).status_code == 200
        ours = ["decode", "decode", "denoise", "denoise", "encode", "generate"]
        known = set(ours)
        wait_for(lambda: sorted(span.name for span in spans if span.name in known) == ours)
    assert {span.trace_id.hex() for span in spans} == {trace_id}
    by_id = {span.span_id: span for span in spans}
    [generate] = [span for span in spans if span.name == "generate"]
    for span in spans:
        if span.name in known - {"generate"}:
            assert span.parent_span_id == generate.span_id
            attributes = {entry.key: entry.value for entry in span.attributes}
            assert attributes["midstep.request_id"].string_value == "traced"
    root = generate
    while root.parent_span_id in by_id:
        root = by_id[root.parent_span_id]
    assert root.parent_span_id.hex() == client_span
