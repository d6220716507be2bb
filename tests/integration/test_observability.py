"""Observability of a running application: the metrics that the dashboard and the rules read, and a request's
log lines in every stage."""

import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from promql_parser import MatchOp, VectorSelector

from cluster.ports import free_port
from tests.integration.conftest import replica, wait_for
from tests.integration.predictions import PROMPT, begun, body, create, finished
from tests.integration.predictions import ROUTE as PREDICTIONS
from tests.promql import expressions, selectors

ROUTE = "/v1/images/generations"
EXPORT_TIMEOUT_S = 180.0  # another denoiser starts during this time


def exported(url: str) -> list[Sample]:
    families = text_string_to_metric_families(httpx.get(url, timeout=10).text)
    return [sample for family in families for sample in family.samples]


def reads(selector: VectorSelector, sample: Sample) -> bool:
    """Whether the selector reads the sample. If it matches values by a pattern, not all of them exist at any
    time, but the label does."""
    return sample.name == selector.name and all(
        matcher.name in sample.labels
        and (matcher.op != MatchOp.Equal or sample.labels[matcher.name] == matcher.value)
        for matcher in selector.matchers.matchers
    )


def test_dashboard_and_rules_read_what_a_running_application_exports(
    client: httpx.Client, metrics_url: str
) -> None:
    for _ in range(2):  # the second request finds its texts in the cache
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
        if ":" not in str(selector.name)  # recorded series are computed from the others
    }
    deadline = time.monotonic() + EXPORT_TIMEOUT_S
    while missing:
        assert time.monotonic() < deadline, list(missing)
        samples = exported(metrics_url)
        # One by one: with an export every second, gauges come and go between two updates.
        for name, selector in list(missing.items()):
            if any(reads(selector, sample) for sample in samples):
                del missing[name]
        time.sleep(0.5)
    client.post(f"{PREDICTIONS}/{long['id']}/cancel")
    ours = {sample.name for sample in exported(metrics_url) if sample.name.startswith("ray_midstep_")}
    documented = set(re.findall(r"`(ray_\w+)`", Path("docs/observability.md").read_text()))
    assert {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in ours} <= documented


def lines_of(request_id: str, head: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a request in the logs of all replicas."""
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
    """The deployments that logged the request, and the stage in each line."""
    lines = [line for line in lines_of(request_id, head) if "stage" in line]
    return {(line["deployment"], line["stage"]) for line in lines}


def test_a_requests_id_is_in_the_logs_of_every_stage(client: httpx.Client, head: dict[str, Any]) -> None:
    headers = {"x-request-id": "an-observed-request"}
    assert client.post(ROUTE, json={"prompt": PROMPT}, headers=headers).status_code == 200
    wait_for(lambda: stages_of("an-observed-request", head) == STAGES)
    job = create(client, num_inference_steps=2)["id"]
    finished(client, job)
    wait_for(lambda: stages_of(job, head) == STAGES)
